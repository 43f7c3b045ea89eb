"""Mixed traffic with faults for as long as you like: what grows, leaks, hangs or starves is a failure.

    python -m benchmarks.soak [--minutes 15]

Three models in one server of its own: a fake one that bulk work keeps saturated, a fake one whose texts make
batches fail, miscount, answer NaN and kill the device thread, and the bundled real one. Clients send queries,
bulk work, nonsense and poison, and hang up at random, more of it than the server can compute. At the end the
traffic stops, and what is left over is looked at. The exit code is 1 where a line says FAILED.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import httpx
import numpy as np
import psutil

from benchmarks.serve import Server
from benchmarks.texts import bundled_model_folder, load_texts

NUM_QUERYING, NUM_BULK, NUM_CHAOTIC = 8, 12, 6
TEXTS_PER_BULK_REQUEST = 256
# In less, the server still takes what it needs: about five minutes.
MIN_SAMPLES_OF_MEMORY = 300
# Pools make a thread when they first need it; a leak would make one for each of many faults.
NUM_LATE_THREADS = 4
# A request that has no answer by then hangs.
PATIENCE_S = 120
FAULTY = "debug?delay_s=0.002&fail_on=poison&wrong_count_on=short&nan_on=nothing&die_on=deadly"
MODELS = {"saturated": "debug?delay_s=0.02", "faulty": FAULTY, "real": ""}
# What each kind of request may be answered; 0 is a client that left.
ALLOWED = {
    "query": {200, 429},
    "bulk": {200, 429},
    "poison": {200, 429, 500},
    "nonsense": {400, 404, 405, 413, 415, 422},
    "late": {200, 429, 504},
    "leaver": {0},
}


class Line(NamedTuple):
    """One line of the report. is_timed: whether a busy machine or a short run may make it fail."""

    text: str
    is_fine: bool
    is_timed: bool = False

    def __str__(self) -> str:
        return f"{'ok' if self.is_fine else 'FAILED':<7} {self.text}"


@dataclass
class Sample:
    """What the server's process has at one moment."""

    resident_mib: float
    num_threads: int
    num_files: int


@dataclass
class Soak:
    """The traffic, and what was seen."""

    url: str
    pid: int
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    is_over: bool = False
    seen: Counter[tuple[str, int]] = field(default_factory=Counter)
    query_s: list[float] = field(default_factory=list)
    bulk_s: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._process = psutil.Process(self.pid)
        self._queries, self._passages = load_texts(num_short=256, num_passages=64)

    async def run(self, seconds: float) -> None:
        """All clients for so long, then silence."""
        limits = httpx.Limits(max_connections=NUM_QUERYING + NUM_BULK + NUM_CHAOTIC)
        async with httpx.AsyncClient(base_url=self.url, timeout=PATIENCE_S, limits=limits) as client:
            kinds = [(self._query, NUM_QUERYING), (self._bulk, NUM_BULK), (self._chaos, NUM_CHAOTIC)]
            clients = [self._repeat(send, client) for send, number in kinds for _ in range(number)]
            timer = asyncio.create_task(self._sample(seconds))
            await asyncio.gather(*clients, timer)
        await self._wait_until_idle()

    async def _repeat(
        self, send: Callable[[httpx.AsyncClient], Awaitable[None]], client: httpx.AsyncClient
    ) -> None:
        while not self.is_over:
            await send(client)

    async def _sample(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            self.samples.append(self.sample())
            await asyncio.sleep(min(1.0, seconds / 50))
        self.is_over = True

    def sample(self) -> Sample:
        """Now."""
        with self._process.oneshot():
            return Sample(
                self._process.memory_info().rss / 2**20,
                self._process.num_threads(),
                self._process.num_fds(),
            )

    async def _query(self, client: httpx.AsyncClient) -> None:
        await asyncio.sleep(self.rng.random() / 20)
        model = self.rng.choice(["saturated", "saturated", "faulty", "real"])
        started_s = time.perf_counter()
        status = await self._post(client, "query", {"model": model, "input": self.rng.choice(self._queries)})
        if status == 200 and model == "saturated":
            self.query_s.append(time.perf_counter() - started_s)

    async def _bulk(self, client: httpx.AsyncClient) -> None:
        if self.rng.random() < 0.02:
            await self._post(client, "bulk", {"model": "real", "input": self.rng.sample(self._passages, 32)})
            return
        texts = [
            f"{self.rng.random()} {self.rng.choice(self._passages)}" for _ in range(TEXTS_PER_BULK_REQUEST)
        ]
        started_s = time.perf_counter()
        if await self._post(client, "bulk", {"model": "saturated", "input": texts}) == 200:
            self.bulk_s.append(time.perf_counter() - started_s)
        else:
            await asyncio.sleep(0.05)

    async def _chaos(self, client: httpx.AsyncClient) -> None:
        await asyncio.sleep(self.rng.random() / 10)
        kind = self.rng.choices(["poison", "nonsense", "late", "leaver"], [4, 4, 2, 4])[0]
        texts = self.rng.sample(self._queries, 8)
        if kind == "poison":
            word = self.rng.choices(["poison", "short", "nothing", "deadly"], [10, 10, 10, 1])[0]
            await self._post(client, kind, {"model": "faulty", "input": [*texts, f"a text with {word}"]})
        elif kind == "nonsense":
            await self._nonsense(client)
        elif kind == "late":
            body = {"model": "saturated", "input": texts, "timeout": self.rng.random() / 10 + 1e-3}
            await self._post(client, kind, body)
        else:
            with contextlib.suppress(asyncio.TimeoutError):
                body = {"model": "saturated", "input": texts * 20}
                await asyncio.wait_for(client.post("/embeddings", json=body), self.rng.random() / 10)
            self.seen[kind, 0] += 1

    async def _nonsense(self, client: httpx.AsyncClient) -> None:
        path, content, kind = self.rng.choice(
            [
                ("/embeddings", b'{"input": ', "application/json"),
                ("/embeddings", b'{"input": [[1, 2]]}', "application/json"),
                ("/embeddings", b'{"input": "a", "model": "unknown"}', "application/json"),
                ("/embeddings", b'{"input": "a", "model": "real", "dimensions": 5000}', "application/json"),
                ("/embeddings", b"\x00" * 1000, "application/octet-stream"),
                ("/rerank", b'{"query": "a", "model": "real"}', "application/json"),
                ("/no/such/route", b"{}", "application/json"),
                ("/health", b"{}", "application/json"),
            ]
        )
        answer = await client.post(path, content=content, headers={"content-type": kind})
        self.seen["nonsense", answer.status_code] += 1

    async def _post(self, client: httpx.AsyncClient, kind: str, body: dict[str, object]) -> int:
        answer = await client.post("/embeddings", json=body)
        if answer.status_code == 200:
            num_inputs = 1 if isinstance(body["input"], str) else len(body["input"])  # type: ignore[arg-type]
            assert len(answer.json()["data"]) == num_inputs
        self.seen[kind, answer.status_code] += 1
        return answer.status_code

    async def _wait_until_idle(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=PATIENCE_S) as client:
            for _ in range(int(PATIENCE_S * 10)):
                text = (await client.get("/metrics")).text
                if not any(map(float, re.findall(r"^infinity_pending_requests\{.*\} (.*)$", text, re.M))):
                    return
                await asyncio.sleep(0.1)
        raise TimeoutError("requests are pending that nobody sent any more")


def judge(soak: Soak, before: Sample, after: Sample) -> list[Line]:
    """What is promised, and whether it was kept.

    before: after the start, when every model has answered. after: when all clients have left.
    """
    strange = {each: number for each, number in soak.seen.items() if each[1] not in ALLOWED[each[0]]}
    quarter = len(soak.samples) // 4
    early, late = soak.samples[quarter : 2 * quarter], soak.samples[-quarter:]
    early_mib, late_mib = (max(each.resident_mib for each in samples) for samples in (early, late))
    most_threads = max(each.num_threads for each in early)
    query_p99_s, bulk_s = np.percentile(soak.query_s, 99), np.median(soak.bulk_s)
    answers = ", ".join(f"{kind} {status}: {number}" for (kind, status), number in sorted(soak.seen.items()))
    return [
        Line(answers, not strange),
        Line(
            f"resident memory {early_mib:.0f} MiB early, {late_mib:.0f} MiB late",
            late_mib <= 1.05 * early_mib + 16,
            is_timed=len(soak.samples) < MIN_SAMPLES_OF_MEMORY,
        ),
        Line(
            f"{most_threads} threads early, {after.num_threads} after",
            after.num_threads <= most_threads + NUM_LATE_THREADS,
        ),
        Line(
            f"{before.num_files} files and sockets before, {after.num_files} after",
            after.num_files <= before.num_files,
        ),
        Line(
            f"99th percentile of a query {query_p99_s:.2f} s beside bulk requests of {bulk_s:.2f} s"
            f" (ratio {query_p99_s / bulk_s:.2f})",
            bool(query_p99_s <= bulk_s / 2),
            is_timed=True,
        ),
        Line(
            f"{soak.seen['bulk', 200]} bulk requests answered beside the queries", soak.seen["bulk", 200] > 0
        ),
    ]


def run(minutes: float) -> list[Line]:
    """Start the server, run the traffic, stop the server; the report."""
    flags = ["--engine", "debugengine", "--engine", "debugengine", "--engine", "torch"]
    for name, path in MODELS.items():
        flags += ["--model-id", path or str(bundled_model_folder()), "--served-model-name", name]
    with tempfile.TemporaryFile() as log:
        server = Server([*flags, "--batch-size", "32", "--max-queue-wait-s", "20"], log=log.fileno())
        try:
            report = _watch(server, 60 * minutes)
        except (httpx.HTTPError, TimeoutError):
            log.seek(0)
            sys.stderr.buffer.write(log.read()[-20_000:])  # what the server said at the end
            raise
        finally:
            exit_code = server.close()
    return [*report, Line(f"ended on SIGTERM with code {exit_code}", exit_code == 0)]


def _watch(server: Server, seconds: float) -> list[Line]:
    soak = Soak(f"http://127.0.0.1:{server.port}", server.pid)
    warm_up = Soak(soak.url, soak.pid)
    asyncio.run(warm_up.run(5.0))
    before = soak.sample()
    asyncio.run(soak.run(seconds))
    time.sleep(3.0)  # for sockets to close
    report = judge(soak, before, soak.sample())
    with httpx.Client(base_url=soak.url, timeout=PATIENCE_S) as client:
        for name in MODELS:
            answer = client.post("/embeddings", json={"model": name, "input": "afterwards"})
            report.append(Line(f"{name} answers afterwards: {answer.status_code}", answer.status_code == 200))
    return report


def main() -> int:
    """Print the report; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=15)
    report = run(parser.parse_args().minutes)
    print(*report, sep="\n")
    return 0 if all(line.is_fine for line in report) else 1


if __name__ == "__main__":
    sys.exit(main())
