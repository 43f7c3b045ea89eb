"""A load generator that costs little: keep-alive sockets, requests made beforehand, answers not parsed.

On a small machine the clients compete with the server for the cores, so what they do counts against it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


def make_requests(texts: list[str], *, per_request: int, port: int, encoding_format: str) -> list[bytes]:
    """HTTP/1.1 requests to /embeddings, ready to send."""
    return [
        make_request(
            "/embeddings",
            {"input": texts[start : start + per_request], "encoding_format": encoding_format},
            port=port,
        )
        for start in range(0, len(texts), per_request)
    ]


def make_request(path: str, body: object, *, port: int) -> bytes:
    """An HTTP/1.1 POST of JSON, ready to send."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def run_load(requests: list[bytes], *, port: int, num_clients: int) -> tuple[float, list[float]]:
    """Send every request once. Returns seconds for all of them, and the seconds of each."""
    todo = itertools.count()
    latencies_s = [0.0] * len(requests)

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in todo:
            if number >= len(requests):
                break
            started_s = time.perf_counter()
            writer.write(requests[number])
            await _read_answer(reader)
            latencies_s[number] = time.perf_counter() - started_s
        writer.close()
        await writer.wait_closed()

    started_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(num_clients)))
    return time.perf_counter() - started_s, latencies_s


class Answer(NamedTuple):
    """When a request was sent and answered, in seconds since the load began, and the status.

    The status is 0 where the connection ended without an answer.
    """

    sent_s: float
    answered_s: float
    status: int


async def run_open_load(requests: list[bytes], *, port: int, per_s: float, duration_s: float) -> list[Answer]:
    """Send so many requests a second, over and over, whether or not earlier ones are answered.

    Each that is under way has a connection of its own. There is no task and no stream behind a request: a
    generator that costs as much as what it sends would measure itself.
    """
    loop = asyncio.get_running_loop()
    idle: list[_OpenConnection] = []
    answers: list[Answer] = []
    tasks: set[asyncio.Task[None]] = set()
    started_s = time.perf_counter()

    async def send(request: bytes) -> None:
        while idle:
            connection = idle.pop()
            if connection.is_open:
                connection.send(request)
                return
        _, connection = await loop.create_connection(
            lambda: _OpenConnection(idle, note, send_again), "127.0.0.1", port
        )
        connection.send(request)

    def note(sent_s: float, status: int) -> None:
        answers.append(Answer(sent_s - started_s, time.perf_counter() - started_s, status))

    def send_again(request: bytes) -> None:
        task = loop.create_task(send(request))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    num_requests = int(per_s * duration_s)
    for number in range(num_requests):
        await asyncio.sleep(max(0.0, started_s + number / per_s - time.perf_counter()))
        await send(requests[number % len(requests)])
    while len(answers) < num_requests:
        await asyncio.sleep(0.05)
    for connection in idle:
        connection.close()
    return answers


class _OpenConnection(asyncio.Protocol):
    """One request after another; between them it lies in `idle`.

    note: is told when a request was sent, and the status.
    send_again: takes a request that the server cannot have seen: it closed the connection, which lay idle.
    """

    def __init__(
        self,
        idle: list[_OpenConnection],
        note: Callable[[float, int], None],
        send_again: Callable[[bytes], None],
    ) -> None:
        self.is_open = False
        self._idle = idle
        self._note = note
        self._send_again = send_again
        self._request: bytes | None = None
        self._sent_s = 0.0
        self._received = b""
        self._num_answers = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.is_open = True

    def send(self, request: bytes) -> None:
        self._request, self._sent_s = request, time.perf_counter()
        self._transport.write(request)

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank_line, body = self._received.partition(b"\r\n\r\n")
        if not blank_line or len(body) < _content_length(head):
            return
        self._received, self._request = b"", None
        self._num_answers += 1
        self._note(self._sent_s, _status_in(head))
        self._idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._request is not None:
            if self._num_answers and not self._received:
                self._send_again(self._request)
            else:
                self._note(self._sent_s, 0)


async def _read_answer(reader: asyncio.StreamReader) -> None:
    status = await _read_status(reader)
    if status != 200:
        raise RuntimeError(f"the server answered {status}")


async def _read_status(reader: asyncio.StreamReader) -> int:
    """Of one answer, which is read to its end."""
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(_content_length(head))
    return _status_in(head)


def _content_length(head: bytes) -> int:
    return int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])


def _status_in(head: bytes) -> int:
    return int(head.split(b" ", 2)[1])


def median_ms(seconds: list[float]) -> float:
    """The median in milliseconds."""
    return float(np.median(seconds)) * 1000
