"""Measure the Batch API with OpenAI's client: kill its server, and time other requests beside a batch.

    python -m benchmarks.batches [--lines 2000] [--queries 1000] [--model MODEL]

Two batches have some bad lines. Beside the first, one client sends one query after the other, and the batch
is cancelled afterwards. During the second, the server is killed with SIGKILL and started again; every line
must be in one of the two result files, once. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
from openai.types import Batch

from benchmarks.rounds import describe_machine
from benchmarks.texts import load_texts
from infinity_emb.server.batches.pace import QUIET_S

BAD_EVERY = 100
ENDS = ("completed", "failed", "expired", "cancelled")


class ServerProcess:
    """A server on a free port of the loopback."""

    def __init__(self, options: list[str]) -> None:
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self) -> None:
        """Start the server and wait until it listens."""
        command = [sys.executable, "-m", "infinity_emb", "v2", "--host", "127.0.0.1", "--port", "0"]
        self._process = subprocess.Popen([*command, *self._options], stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        line = next(line for line in self._process.stderr if "listening on " in line)
        self.url = line.partition("listening on ")[2].partition(",")[0].strip()

    def kill(self) -> None:
        """End the server with SIGKILL."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()

    def open_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="any", http_client=httpx2.AsyncClient())


def make_lines(num_lines: int) -> list[dict[str, Any]]:
    texts, _ = load_texts(num_short=num_lines, num_passages=1)
    return [
        {
            "custom_id": f"row-{number}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "any", "input": text if number % BAD_EVERY else 5},
        }
        for number, text in enumerate(texts)
    ]


async def time_queries(client: openai.AsyncOpenAI, count: int) -> list[float]:
    """Return the duration of each query in milliseconds."""
    durations = []
    for number in range(count):
        start_s = time.monotonic()
        await client.embeddings.create(model="any", input=f"what is number {number}?")
        durations.append(1000 * (time.monotonic() - start_s))
    return durations


async def run(server: ServerProcess, num_lines: int, num_queries: int) -> dict[str, Any]:
    """Run the batch; return the figures. Raises AssertionError for a line that is lost or twice."""
    lines = make_lines(num_lines)
    client = server.open_client()
    await time_queries(client, 20)
    alone = await time_queries(client, num_queries)
    batch = await start_batch(client, lines)
    beside = await time_queries(client, num_queries)
    beside_counts = (await client.batches.cancel(batch.id)).request_counts
    await asyncio.sleep(2 * QUIET_S)
    batch = await start_batch(client, lines)
    start_s = time.monotonic()
    while count_done(batch := await client.batches.retrieve(batch.id)) < num_lines // 2:
        await asyncio.sleep(0.05)
    lines_per_s = count_done(batch) / (time.monotonic() - start_s)
    num_before_kill = count_done(batch)
    server.kill()
    server.start()
    client = server.open_client()
    while (batch := await client.batches.retrieve(batch.id)).status not in ENDS:
        await asyncio.sleep(0.05)
    ids = []
    for file_id in (batch.output_file_id, batch.error_file_id):
        assert file_id is not None
        text = (await client.files.content(file_id)).text
        ids += [json.loads(line)["custom_id"] for line in text.splitlines()]
    assert sorted(ids) == sorted(line["custom_id"] for line in lines), "a line is lost or twice"
    return {
        "lines": num_lines,
        "done_before_kill": num_before_kill,
        "counts": batch.request_counts.model_dump() if batch.request_counts else {},
        "lines_per_s": round(lines_per_s),
        "lines_beside_queries": beside_counts.completed if beside_counts else 0,
        "p50_ms": [round(float(np.percentile(each, 50)), 2) for each in (alone, beside)],
        "p99_ms": [round(float(np.percentile(each, 99)), 2) for each in (alone, beside)],
    }


async def start_batch(client: openai.AsyncOpenAI, lines: list[dict[str, Any]]) -> Batch:
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
    )


def count_done(batch: Batch) -> int:
    assert batch.request_counts is not None
    return batch.request_counts.completed + batch.request_counts.failed


def main() -> None:
    """Start a server, run the batch, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batches")
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        server = ServerProcess(["--model-id", options.model, "--batch-dir", str(Path(name) / "batches")])
        server.start()
        try:
            figures = asyncio.run(run(server, options.lines, options.queries))
        finally:
            server.kill()
    (p50, p50_beside), (p99, p99_beside) = figures["p50_ms"], figures["p99_ms"]
    print(
        f"{options.lines} lines, {figures['lines_per_s']} lines/s alone, killed after"
        f" {figures['done_before_kill']}: none lost, none twice"
    )
    print(f"queries alone: p50 {p50} ms, p99 {p99} ms; beside the batch: {p50_beside} ms, {p99_beside} ms")
    print(f"p99 beside / alone: {p99_beside / p99:.2f} (goal <= 1.3)")
    print("\n" + json.dumps({"machine": describe_machine(), **figures}))


if __name__ == "__main__":
    main()
