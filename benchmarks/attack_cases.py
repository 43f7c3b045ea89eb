"""Attacks of one client, as traffic on a running server, and the options of the servers that they attack."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image

from benchmarks.texts import bundled_model_folder

HOG, OTHER = "the-key-of-the-hog", "the-key-of-the-other"
FAKE = [
    "--engine",
    "debugengine",
    "--model-id",
    "debug?kind=embedder&delay_s=0.01",
    "--max-batch-tokens",
    "4096",
]
REAL = ["--model-id", str(bundled_model_folder())]
TEXT = "a text of some words, as anybody sends it; " * 46
PAUSE_S = 0.1
# A request without a response by then is given up.
TIMEOUT_S = 60.0


@dataclass
class Traffic:
    """Send requests of one client for some time, and record the responses."""

    url: str
    key: str
    seconds: float
    took_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._until_s = time.monotonic() + self.seconds

    @property
    def is_over(self) -> bool:
        """True when the time has passed."""
        return time.monotonic() > self._until_s

    async def post(self, client: httpx.AsyncClient, path: str, content: bytes) -> int:
        """Send JSON and return the status; 0 where no response came."""
        return await self.send(client, "POST", path, content)

    async def send(
        self, client: httpx.AsyncClient, method: str, path: str, content: bytes | None = None
    ) -> int:
        """Send a request and return the status; 0 where no response came."""
        headers = {"content-type": "application/json", "authorization": f"Bearer {self.key}"}
        started_s = time.perf_counter()
        try:
            response = await client.request(method, self.url + path, content=content, headers=headers)
            status = response.status_code
        except httpx.HTTPError:
            status = 0
        self.statuses[status] += 1
        self.took_s.append(time.perf_counter() - started_s)
        return status


async def send_texts(traffic: Traffic) -> None:
    """Send one text again and again."""
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
        while not traffic.is_over:
            content = make_json(input=f"{len(traffic.took_s)} {TEXT}")
            await traffic.post(client, "/embeddings", content)
            await asyncio.sleep(PAUSE_S)


Attack = Callable[[Traffic], Awaitable[None]]


def repeat(path: str, content: bytes, num_connections: int) -> Attack:
    """Return an attack that posts the same body again and again."""

    async def attack(traffic: Traffic) -> None:
        async def run() -> None:
            while not traffic.is_over:
                if await traffic.post(client, path, content) in (0, 429, 503):
                    await asyncio.sleep(0.05)

        limits = httpx.Limits(max_connections=num_connections)
        async with httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits) as client:
            await asyncio.gather(*(run() for _ in range(num_connections)))

    return attack


def leave_unread(path: str, content: bytes | None, num_connections: int, num_pipelined: int = 1) -> Attack:
    """Return an attack that reads none of its responses; without content, they are those to GET."""

    async def attack(traffic: Traffic) -> None:
        writers = []
        for _ in range(num_connections):
            reader, writer = await _connect(traffic.url)
            reader._transport.pause_reading()  # type: ignore[attr-defined]  # no public way
            writer.write(_format_request(path, content) * num_pipelined)
            writers.append(writer)
        while not traffic.is_over:
            await asyncio.sleep(0.1)
        for writer in writers:
            writer.transport.abort()

    return attack


def read_slowly(path: str, content: bytes, num_connections: int) -> Attack:
    """Return an attack that reads 64 KiB of each response ten times a second."""

    async def attack(traffic: Traffic) -> None:
        async def run() -> None:
            reader, writer = await _connect(traffic.url)
            while not traffic.is_over:
                writer.write(_format_request(path, content))
                for _ in range(100):
                    if not await reader.read(2**16) or traffic.is_over:
                        break
                    await asyncio.sleep(0.1)
            writer.transport.abort()

        await asyncio.gather(*(run() for _ in range(num_connections)))

    return attack


async def _connect(url: str, limit: int = 1) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port), limit=limit)


def _format_request(path: str, content: bytes | None) -> bytes:
    """Return a request of the hog: POST of JSON, or GET."""
    lines = [f"{'GET' if content is None else 'POST'} {path} HTTP/1.1", "host: a"]
    lines.append(f"authorization: Bearer {HOG}")
    if content is not None:
        lines += ["content-type: application/json", f"content-length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (content or b"")


def flood(path: str, num_connections: int, num_pipelined: int) -> Attack:
    """Return an attack that sends GET requests without waiting for their responses, and reads these."""

    async def attack(traffic: Traffic) -> None:
        async def read(reader: asyncio.StreamReader) -> None:
            while await reader.read(2**18):
                pass

        async def run() -> None:
            reader, writer = await _connect(traffic.url, 2**16)
            reading = asyncio.create_task(read(reader))
            while not traffic.is_over:
                writer.write(_format_request(path, None) * num_pipelined)
                await writer.drain()
            reading.cancel()
            writer.transport.abort()

        await asyncio.gather(*(run() for _ in range(num_connections)))

    return attack


async def ask_health(traffic: Traffic) -> None:
    """Ask for `/health` again and again."""
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
        while not traffic.is_over:
            await traffic.send(client, "GET", "/health")
            await asyncio.sleep(PAUSE_S)


def make_json(**fields: Any) -> bytes:
    """Return a body."""
    return json.dumps(fields, ensure_ascii=False).encode()


def make_scan_bomb(num_scans: int, side: int = 8000) -> bytes:
    """Return a progressive JPEG with empty scans."""
    stream = io.BytesIO()
    Image.new("L", (side, side)).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    scan = b"\xff\xda" + struct.pack(">H", 8) + b"\x01\x01\x00\x01\x01\x00" + b"\x00"
    return data[:-2] + scan * num_scans + data[-2:]


def make_slow_gif() -> bytes:
    """Return a GIF whose comment has a million parts."""
    return b"GIF89a" + struct.pack("<HH", 100, 100) + b"\0\0\0\x21\xfe" + b"\x01a" * 10**6 + b"\0;"


def make_images(data: bytes, number: int) -> bytes:
    """Return a body with images as data URIs."""
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    return make_json(modality="image", input=[uri] * number)


def make_text_body(text: str, size: int, end: str = "") -> bytes:
    """Return a body of about `size` bytes with one text, a text again and again and then another one."""
    number = size // len(text.encode())
    return b'{"input": "%b"}' % (text * number + end).encode()


@dataclass(frozen=True)
class Case:
    """An attack, the options of its server, and the bound that the documentation gives."""

    flags: list[str]
    make: Callable[[], Attack]
    bound: str = "the share of a client"
    ask: Callable[[Traffic], Coroutine[Any, Any, None]] = send_texts  # of the other client


LEFT = {"truncation_side": "left"}
TOTAL = "--max-total-body-bytes 1024 MiB"
MANY_VALUES = ["--engine", "debugengine", "--model-id", "debug?kind=embedder"]
WIDE_VECTORS = ["--engine", "debugengine", "--model-id", "debug?kind=embedder&dimension=1024"]
SIZE = 31_000_000
NUMBERS = [f"{number}" for number in range(2048)]
CASES = {
    "prompt x inputs": Case(
        REAL,
        lambda: repeat("/embeddings", make_json(input=NUMBERS, prompt="a b " * 25_000, **LEFT), 4),
        "--max-request-chars",
    ),
    "prompt x inputs, within the limit": Case(
        REAL,
        lambda: repeat("/embeddings", make_json(input=NUMBERS[:2000], prompt="a b " * 4_000, **LEFT), 4),
        "--max-request-chars",
    ),
    "texts of a megabyte, cut on the left": Case(
        REAL, lambda: repeat("/embeddings", make_json(input=["a b " * 250_000] * 8 + ["b"], **LEFT), 8)
    ),
    "a full queue, bulk": Case(
        FAKE, lambda: repeat("/embeddings", make_json(input=[f"{i} {TEXT}" for i in range(600)]), 64)
    ),
    "a full queue, single texts": Case(FAKE, lambda: repeat("/embeddings", make_json(input=TEXT), 256)),
    "texts beyond the BMP": Case(
        FAKE,
        lambda: repeat("/embeddings", make_text_body("a", SIZE, "\U0001f600"), 49),
        TOTAL,
    ),
    "texts of 16 MB with an emoji": Case(
        FAKE, lambda: repeat("/embeddings", make_text_body("a", 2**24 - 100, "\U0001f600"), 49), TOTAL
    ),
    "ASCII texts of 31 MB": Case(FAKE, lambda: repeat("/embeddings", make_text_body("a", SIZE), 49), TOTAL),
    "Chinese texts of 31 MB": Case(
        FAKE, lambda: repeat("/embeddings", make_text_body("\u4e2d", SIZE), 49), TOTAL
    ),
    "escapes, 31 MB": Case(FAKE, lambda: repeat("/embeddings", make_text_body(r"\u00e9", SIZE), 49), TOTAL),
    "escapes with half a pair, 31 MB": Case(
        FAKE, lambda: repeat("/embeddings", make_text_body(r"\u00e9", SIZE, r"\ud83d"), 49), TOTAL
    ),
    "260,000 short texts, one emoji each": Case(
        FAKE, lambda: repeat("/embeddings", make_json(input=["a\U0001f600"] * 260_000), 16), "422"
    ),
    "2,000 texts of 15 kB": Case(
        FAKE, lambda: repeat("/embeddings", make_json(input=[f"{i} {TEXT * 7}" for i in range(2000)]), 16)
    ),
    "a million token ids": Case(
        FAKE, lambda: repeat("/embeddings", make_json(input=[[7] * 1000] * 1000), 16)
    ),
    "a key of 31 MB": Case(
        FAKE, lambda: repeat("/embeddings", b'{"input": "a", "%b": 1}' % (b"k" * SIZE), 16), TOTAL
    ),
    "responses of 65,000 numbers": Case(
        WIDE_VECTORS, lambda: repeat("/embeddings", make_json(input=NUMBERS[:63]), 64)
    ),
    "responses of 2,000,000 numbers": Case(
        WIDE_VECTORS, lambda: repeat("/embeddings", make_json(input=NUMBERS[:2000]), 16)
    ),
    "responses of 8 MB in base64": Case(
        WIDE_VECTORS,
        lambda: repeat("/embeddings", make_json(input=NUMBERS[:1500], encoding_format="base64"), 16),
    ),
    "responses that nobody reads": Case(
        MANY_VALUES,
        lambda: leave_unread("/embed_all", make_json(inputs=["ab" * 500] * 128), 300),
        TOTAL,
    ),
    "unread responses in base64": Case(
        WIDE_VECTORS,
        lambda: leave_unread("/embeddings", make_json(input=NUMBERS[:1500], encoding_format="base64"), 300),
        TOTAL,
    ),
    "unread responses of pipelined requests": Case(
        WIDE_VECTORS, lambda: leave_unread("/embeddings", make_json(input=NUMBERS[:63]), 100, 20), TOTAL
    ),
    "unread metrics": Case(FAKE, lambda: leave_unread("/metrics", None, 300, 20), TOTAL),
    "responses that are read slowly": Case(
        MANY_VALUES, lambda: read_slowly("/embed_all", make_json(inputs=["ab" * 500] * 128), 100), TOTAL
    ),
    "pipelined GET /models": Case(FAKE, lambda: flood("/models", 20, 500), ask=ask_health),
    "texts beside pipelined GET /models": Case(FAKE, lambda: flood("/models", 20, 500)),
    "pipelined GET /metrics": Case(FAKE, lambda: flood("/metrics", 20, 500), ask=ask_health),
    "texts beside pipelined GET /metrics": Case(FAKE, lambda: flood("/metrics", 20, 500)),
    "a body of commas and quotes": Case(
        FAKE, lambda: repeat("/embeddings", b'{"input": ["' + b',""' * 10**7 + b'"]}', 8)
    ),
    "a JPEG of 3,000 scans": Case(
        FAKE, lambda: repeat("/embeddings", make_images(make_scan_bomb(3000), 4), 4)
    ),
    "a JPEG of 16 scans and 64 megapixels": Case(
        FAKE, lambda: repeat("/embeddings", make_images(make_scan_bomb(10), 3), 4), "10 s a file"
    ),
    "a GIF comment of a million parts": Case(
        FAKE, lambda: repeat("/embeddings", make_images(make_slow_gif(), 4), 4), "400"
    ),
    "addresses whose name server is silent": Case(
        FAKE,
        lambda: repeat("/embeddings", make_json(modality="image", input=["http://a.invalid/b.png"] * 8), 8),
    ),
}
