"""A load generator that costs little: keep-alive sockets, requests made beforehand, answers not parsed.

On a small machine the clients compete with the server for the cores, so what they do counts against it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from typing import NamedTuple

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
    """When a request was sent and answered, in seconds since the load began, and the status."""

    sent_s: float
    answered_s: float
    status: int


async def run_open_load(requests: list[bytes], *, port: int, per_s: float, duration_s: float) -> list[Answer]:
    """Send so many requests a second, over and over, whether or not earlier ones are answered.

    Each that is under way has a connection of its own.
    """
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    answers: list[Answer] = []
    started_s = time.perf_counter()

    async def send(request: bytes) -> None:
        sent_s = time.perf_counter() - started_s
        while True:
            is_used = bool(idle)
            reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            try:
                status = await _read_status(reader)
                break
            except (asyncio.IncompleteReadError, ConnectionError):
                if not is_used:  # one that lay idle may have been closed by then
                    raise
        answers.append(Answer(sent_s, time.perf_counter() - started_s, status))
        idle.append((reader, writer))

    tasks = []
    for number in range(int(per_s * duration_s)):
        await asyncio.sleep(max(0.0, started_s + number / per_s - time.perf_counter()))
        tasks.append(asyncio.create_task(send(requests[number % len(requests)])))
    await asyncio.gather(*tasks)
    for _, writer in idle:
        writer.close()
    return answers


async def _read_answer(reader: asyncio.StreamReader) -> None:
    status = await _read_status(reader)
    if status != 200:
        raise RuntimeError(f"the server answered {status}")


async def _read_status(reader: asyncio.StreamReader) -> int:
    """Of one answer, which is read to its end."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    await reader.readexactly(length)
    return int(head.split(b" ", 2)[1])


def median_ms(seconds: list[float]) -> float:
    """The median in milliseconds."""
    return float(np.median(seconds)) * 1000
