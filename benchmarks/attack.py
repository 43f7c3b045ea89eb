"""Attack a server with one client, and measure what another one waits, memory, and how long the loop is held.

    python -m benchmarks.attack [--seconds 10] [--only NAME]

Each attack has a server of its own. The other client sends a text of 2 kB again and again, first alone and
then beside the attack. The last columns count statuses; 0 stands for no response. Attacker, client and server
share the cores.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.rounds import describe_machine
from benchmarks.serve import Server
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


class AttackedServer(Server):
    """Run the server with a heartbeat, and read what it says."""

    def __init__(self, flags: list[str]) -> None:
        with tempfile.NamedTemporaryFile(delete=False) as file:
            self._heartbeat = Path(file.name)
        os.environ["HEARTBEAT"] = file.name
        super().__init__([*flags, "--api-key", HOG, "--api-key", OTHER], module="benchmarks.attacked_server")

    def reset(self) -> None:
        """Forget what was measured."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        self._heartbeat.write_text("")
        time.sleep(0.3)

    @property
    def peak_mib(self) -> float:
        """The largest resident memory since the reset."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    @property
    def longest_holds_ms(self) -> list[float]:
        """How long the event loop was held at most since the reset, in time and in processor time."""
        return [1000 * float(word) for word in self._heartbeat.read_text().split()]


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


def leave_unread(path: str, content: bytes, num_connections: int) -> Attack:
    """Return an attack that reads none of its responses."""

    async def attack(traffic: Traffic) -> None:
        host, port = traffic.url.removeprefix("http://").split(":")
        head = [f"POST {path} HTTP/1.1", "host: a", f"authorization: Bearer {HOG}"]
        head += ["content-type: application/json", f"content-length: {len(content)}", "", ""]
        request = "\r\n".join(head).encode() + content
        writers = []
        for _ in range(num_connections):
            reader, writer = await asyncio.open_connection(host, int(port), limit=1)
            reader._transport.pause_reading()  # type: ignore[attr-defined]  # no public way
            writer.write(request)
            writers.append(writer)
        while not traffic.is_over:
            await asyncio.sleep(0.1)
        for writer in writers:
            writer.transport.abort()

    return attack


def flood(path: str, num_connections: int, num_pipelined: int) -> Attack:
    """Return an attack that sends GET requests without waiting for their responses, and reads these."""

    async def attack(traffic: Traffic) -> None:
        host, port = traffic.url.removeprefix("http://").split(":")
        head = f"GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {HOG}\r\n\r\n"

        async def read(reader: asyncio.StreamReader) -> None:
            while await reader.read(2**18):
                pass

        async def run() -> None:
            reader, writer = await asyncio.open_connection(host, int(port))
            reading = asyncio.create_task(read(reader))
            while not traffic.is_over:
                writer.write(head.encode() * num_pipelined)
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


@dataclass(frozen=True)
class Case:
    """An attack, the options of its server, and the bound that the documentation gives."""

    flags: list[str]
    make: Callable[[], Attack]
    bound: str = "the share of a client"
    ask: Callable[[Traffic], Coroutine[Any, Any, None]] = send_texts  # of the other client


LEFT = {"truncation_side": "left"}
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
        lambda: repeat("/embeddings", make_json(input="a" * 31_000_000 + "\U0001f600"), 49),
        "--max-total-body-bytes 1024 MiB",
    ),
    "responses that nobody reads": Case(
        ["--engine", "debugengine", "--model-id", "debug?kind=embedder"],
        lambda: leave_unread("/embed_all", make_json(inputs=["ab" * 500] * 128), 300),
        "--max-total-body-bytes 1024 MiB",
    ),
    "pipelined GET /models": Case(FAKE, lambda: flood("/models", 20, 500), ask=ask_health),
    "texts beside pipelined GET /models": Case(FAKE, lambda: flood("/models", 20, 500)),
    "pipelined GET /metrics": Case(FAKE, lambda: flood("/metrics", 20, 500), ask=ask_health),
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


@contextlib.contextmanager
def serving(flags: list[str]) -> Iterator[AttackedServer]:
    """Run a server until the end of the block."""
    server = AttackedServer(flags)
    try:
        yield server
    finally:
        server.kill()


def measure(name: str, case: Case, seconds: float) -> dict[str, Any]:
    """Return the figures of one attack."""
    with serving(case.flags) as server:
        url = f"http://127.0.0.1:{server.port}"
        alone = Traffic(url, OTHER, seconds / 2)
        asyncio.run(case.ask(alone))
        server.reset()
        command = [sys.executable, "-m", "benchmarks.attack", "--only", name, "--seconds", str(seconds)]
        attacking = subprocess.Popen([*command, "--url", url], stdout=subprocess.PIPE)
        attacked = Traffic(url, OTHER, seconds)
        asyncio.run(case.ask(attacked))
        output, _ = attacking.communicate()
        return {
            "attack": name,
            "alone_p99_s": float(np.percentile(alone.took_s, 99)),
            "other_p50_s": float(np.median(attacked.took_s)),
            "other_p99_s": float(np.percentile(attacked.took_s, 99)),
            "peak_mib": server.peak_mib,
            "longest_holds_ms": server.longest_holds_ms,
            "other": attacked.statuses,
            "hog": json.loads(output),
            "bound": case.bound,
        }


async def attack(case: Case, url: str, seconds: float) -> None:
    """Run an attack and print the statuses of its responses."""
    traffic = Traffic(url, HOG, seconds)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(case.make()(traffic), seconds + 2)
    print(json.dumps(traffic.statuses))


def main() -> None:
    """Run the attacks and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--only", default="", help="name of an attack, or its beginning")
    parser.add_argument("--url", help="attack this server, and measure nothing")
    options = parser.parse_args()
    if options.url:
        asyncio.run(attack(CASES[options.only], options.url, options.seconds))
        return
    print(f"{describe_machine()}, {options.seconds:g} s each\n")
    print(f"{'attack':40}{'alone p99':>10}{'p50':>9}{'p99':>9}{'MiB':>8}{'loop held':>15}  other, hog")
    results = []
    for name, case in CASES.items():
        if name.startswith(options.only):
            results.append(measure(name, case, options.seconds))
            print_figures(results[-1])
    print("\n" + json.dumps({"machine": describe_machine(), "seconds": options.seconds, "attacks": results}))


def print_figures(figures: dict[str, Any]) -> None:
    """Print one line of the table."""
    waits = "".join(f"{figures[name]:7.3f} s" for name in ("alone_p99_s", "other_p50_s", "other_p99_s"))
    holds = "/".join(f"{hold:.0f}" for hold in figures["longest_holds_ms"])
    statuses = f"{dict(figures['other'])}, {figures['hog']}"
    print(f"{figures['attack']:40} {waits}{figures['peak_mib']:8.0f}{holds:>12} ms  {statuses}", flush=True)


if __name__ == "__main__":
    main()
