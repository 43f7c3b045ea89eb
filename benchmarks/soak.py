"""Run mixed traffic with faults, and report leaks, hangs, starvation and wrong responses as failures.

    python -m benchmarks.soak [--minutes 15]

One server with three models: a fake one that bulk requests saturate; a fake one with inputs that make a batch
fail, return too few vectors or NaN, or crash the worker thread; and the bundled one. Clients send queries,
bulk requests, invalid and failing ones, and disconnect at random, more than the server can compute.
Afterwards the traffic stops and the resources are compared. The exit code is 1 if a line says FAILED.
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

NUM_QUERYING, NUM_BULK, NUM_FAULTY = 8, 12, 6
TEXTS_PER_BULK_REQUEST = 256
# About five minutes: in a shorter run the server is still allocating what it needs.
MIN_MEMORY_SAMPLES = 300
# Pools start threads when they first need them; a leak would start one for each of many faults.
NUM_LATE_THREADS = 4
# A request without a response by then counts as hung.
TIMEOUT_S = 120
FAULTY = "debug?delay_s=0.002&fail_on=poison&wrong_count_on=short&nan_on=nothing&die_on=deadly"
MODELS = {"saturated": "debug?delay_s=0.02", "faulty": FAULTY, "real": ""}
# Statuses that each kind of request may get; 0 is a client that disconnected.
ALLOWED = {
    "query": {200, 429},
    "bulk": {200, 429},
    "poison": {200, 429, 500},
    "invalid": {400, 404, 405, 413, 415, 422},
    "late": {200, 429, 504},
    "disconnect": {0},
}


class Line(NamedTuple):
    """Hold one line of the report.

    is_timed: whether it may fail only because the machine is busy or the run is short.
    """

    text: str
    is_passed: bool
    is_timed: bool = False

    def __str__(self) -> str:
        return f"{'ok' if self.is_passed else 'FAILED':<7} {self.text}"


@dataclass
class Sample:
    """Hold the resources of the server's process at one moment."""

    resident_mib: float
    num_threads: int
    num_files: int


@dataclass
class Soak:
    """Send the traffic and record the responses."""

    url: str
    pid: int
    texts_per_bulk: int = TEXTS_PER_BULK_REQUEST
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    is_over: bool = False
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    query_s: list[float] = field(default_factory=list)
    bulk_s: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._process = psutil.Process(self.pid)
        self._queries, self._passages = load_texts(num_short=256, num_passages=64)

    async def run(self, seconds: float) -> None:
        """Run all clients for `seconds`, then wait until the server is idle."""
        limits = httpx.Limits(max_connections=NUM_QUERYING + NUM_BULK + NUM_FAULTY)
        async with httpx.AsyncClient(base_url=self.url, timeout=TIMEOUT_S, limits=limits) as client:
            kinds = [
                (self._send_query, NUM_QUERYING),
                (self._send_bulk, NUM_BULK),
                (self._send_fault, NUM_FAULTY),
            ]
            clients = [self._repeat(send, client) for send, count in kinds for _ in range(count)]
            await asyncio.gather(*clients, self._sample_until_over(seconds))
        await self._wait_until_idle()

    async def _repeat(
        self, send: Callable[[httpx.AsyncClient], Awaitable[None]], client: httpx.AsyncClient
    ) -> None:
        while not self.is_over:
            await send(client)

    async def _sample_until_over(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            self.samples.append(self.take_sample())
            await asyncio.sleep(min(1.0, seconds / 50))
        self.is_over = True

    def take_sample(self) -> Sample:
        """Read the resources of the process now."""
        with self._process.oneshot():
            return Sample(
                self._process.memory_info().rss / 2**20,
                self._process.num_threads(),
                self._process.num_fds(),
            )

    async def _send_query(self, client: httpx.AsyncClient) -> None:
        await asyncio.sleep(self.rng.random() / 20)
        model = self.rng.choice(["saturated", "saturated", "faulty", "real"])
        started_s = time.perf_counter()
        status = await self._post(client, "query", {"model": model, "input": self.rng.choice(self._queries)})
        if status == 200 and model == "saturated":
            self.query_s.append(time.perf_counter() - started_s)

    async def _send_bulk(self, client: httpx.AsyncClient) -> None:
        if self.rng.random() < 0.02:
            await self._post(client, "bulk", {"model": "real", "input": self.rng.sample(self._passages, 32)})
            return
        texts = [f"{self.rng.random()} {self.rng.choice(self._passages)}" for _ in range(self.texts_per_bulk)]
        started_s = time.perf_counter()
        if await self._post(client, "bulk", {"model": "saturated", "input": texts}) == 200:
            self.bulk_s.append(time.perf_counter() - started_s)
        else:
            await asyncio.sleep(0.05)

    async def _send_fault(self, client: httpx.AsyncClient) -> None:
        await asyncio.sleep(self.rng.random() / 10)
        kind = self.rng.choices(["poison", "invalid", "late", "disconnect"], [4, 4, 2, 4])[0]
        texts = self.rng.sample(self._queries, 8)
        if kind == "poison":
            word = self.rng.choices(["poison", "short", "nothing", "deadly"], [10, 10, 10, 1])[0]
            await self._post(client, kind, {"model": "faulty", "input": [*texts, f"a text with {word}"]})
        elif kind == "invalid":
            await self._send_invalid(client)
        elif kind == "late":
            body = {"model": "saturated", "input": texts, "timeout": self.rng.random() / 10 + 1e-3}
            await self._post(client, kind, body)
        else:
            with contextlib.suppress(asyncio.TimeoutError):
                body = {"model": "saturated", "input": texts * 20}
                await asyncio.wait_for(client.post("/embeddings", json=body), self.rng.random() / 10)
            self.statuses[kind, 0] += 1

    async def _send_invalid(self, client: httpx.AsyncClient) -> None:
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
        response = await client.post(path, content=content, headers={"content-type": kind})
        self.statuses["invalid", response.status_code] += 1

    async def _post(self, client: httpx.AsyncClient, kind: str, body: dict[str, object]) -> int:
        response = await client.post("/embeddings", json=body)
        if response.status_code == 200:
            num_inputs = 1 if isinstance(body["input"], str) else len(body["input"])  # type: ignore[arg-type]
            assert len(response.json()["data"]) == num_inputs
        self.statuses[kind, response.status_code] += 1
        return response.status_code

    async def _wait_until_idle(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=TIMEOUT_S) as client:
            for _ in range(int(TIMEOUT_S * 10)):
                text = (await client.get("/metrics")).text
                if not any(
                    map(float, re.findall(r"^infinity_pending_requests\{.*\} (.*)$", text, re.MULTILINE))
                ):
                    return
                await asyncio.sleep(0.1)
        raise TimeoutError("requests are still pending after all clients have finished")


def judge(soak: Soak, before: Sample, after: Sample) -> list[Line]:
    """Compare what was recorded with the limits.

    before: taken after a warm-up of every model. after: taken when all clients have finished.
    """
    unexpected = [kind for kind, status in soak.statuses if status not in ALLOWED[kind]]
    quarter = len(soak.samples) // 4
    early, late = soak.samples[quarter : 2 * quarter], soak.samples[-quarter:]
    early_mib, late_mib = (max(sample.resident_mib for sample in samples) for samples in (early, late))
    most_threads = max(sample.num_threads for sample in early)
    query_p99_s, bulk_s = np.percentile(soak.query_s, 99), np.median(soak.bulk_s)
    counts = ", ".join(f"{kind} {status}: {count}" for (kind, status), count in sorted(soak.statuses.items()))
    return [
        Line(counts, not unexpected),
        Line(
            f"resident memory {early_mib:.0f} MiB early, {late_mib:.0f} MiB late",
            late_mib <= 1.05 * early_mib + 16,
            is_timed=len(soak.samples) < MIN_MEMORY_SAMPLES,
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
            f"{soak.statuses['bulk', 200]} bulk requests answered beside the queries",
            soak.statuses["bulk", 200] > 0,
        ),
    ]


def run(minutes: float, texts_per_bulk: int = TEXTS_PER_BULK_REQUEST) -> list[Line]:
    """Start the server, run the traffic, stop the server; return the report."""
    flags = ["--engine", "debugengine", "--engine", "debugengine", "--engine", "torch"]
    for name, path in MODELS.items():
        flags += ["--model-id", path or str(bundled_model_folder()), "--served-model-name", name]
    with tempfile.TemporaryFile() as log:
        server = Server([*flags, "--batch-size", "32", "--max-queue-wait-s", "20"], log=log.fileno())
        try:
            report = _run_traffic(server, 60 * minutes, texts_per_bulk)
        except (httpx.HTTPError, TimeoutError):
            log.seek(0)
            sys.stderr.buffer.write(log.read()[-20_000:])  # the end of the server's log
            raise
        finally:
            exit_code = server.close()
    return [*report, Line(f"ended on SIGTERM with code {exit_code}", exit_code == 0)]


def _run_traffic(server: Server, seconds: float, texts_per_bulk: int) -> list[Line]:
    soak = Soak(f"http://127.0.0.1:{server.port}", server.pid, texts_per_bulk)
    warm_up = Soak(soak.url, soak.pid, texts_per_bulk)
    asyncio.run(warm_up.run(5.0))
    before = soak.take_sample()
    asyncio.run(soak.run(seconds))
    time.sleep(3.0)  # until the sockets are closed
    report = judge(soak, before, soak.take_sample())
    with httpx.Client(base_url=soak.url, timeout=TIMEOUT_S) as client:
        for name in MODELS:
            response = client.post("/embeddings", json={"model": name, "input": "afterwards"})
            report.append(
                Line(f"{name} answers afterwards: {response.status_code}", response.status_code == 200)
            )
    return report


def main() -> int:
    """Print the report; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=15)
    report = run(parser.parse_args().minutes)
    print(*report, sep="\n")
    return 0 if all(line.is_passed for line in report) else 1


if __name__ == "__main__":
    sys.exit(main())
