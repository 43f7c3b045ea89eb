"""A load generator that costs little: keep-alive sockets, requests made beforehand, answers not parsed.

On a small machine the clients compete with the server for the cores, so what they do counts against it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time

import numpy as np


def make_requests(texts: list[str], *, per_request: int, port: int, encoding_format: str) -> list[bytes]:
    """HTTP/1.1 requests to /embeddings, ready to send."""
    requests = []
    for start in range(0, len(texts), per_request):
        chunk = texts[start : start + per_request]
        body = json.dumps({"input": chunk, "encoding_format": encoding_format}).encode()
        head = (
            f"POST /embeddings HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        requests.append(head.encode() + body)
    return requests


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


async def _read_answer(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(head.decode())
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    await reader.readexactly(length)


def median_ms(seconds: list[float]) -> float:
    """The median in milliseconds."""
    return float(np.median(seconds)) * 1000
