"""Measure bulk jobs: their memory, their speed next to the bare engine, and what a kill costs.

    python -m benchmarks.bulk [--rows 1000000] [--texts 20000] [--rounds 2] [--kills 10]

A figure of 0 leaves its part out. Memory: processes with the fake engine, which compute a tenth of the rows
and all of them. Speed: the bundled model computes 4,000 texts in one call of the engine, and as a job from
JSON Lines to Parquet, in turn, until all are done. Kills: a job of the fake engine is killed with SIGKILL at
random and continued, and its output is compared with that of an undisturbed one. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.rounds import Row, describe_machine, print_rows, summarize_rows
from benchmarks.texts import load_texts
from infinity_emb.bulk.columns import Columns
from infinity_emb.bulk.engine_executor import EngineExecutor, load_engine
from infinity_emb.bulk.job import Job
from infinity_emb.bulk.journal import Journal, Layout
from infinity_emb.bulk.reading import RowSource
from infinity_emb.bulk.results import detect_type
from infinity_emb.bulk.shard_formats import make_format
from infinity_emb.bulk.sources import find_files
from infinity_emb.bulk.tasks import TaskOptions
from infinity_emb.config.bulk_options import BulkOptions
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.config.model_options import DEFAULT_MODEL
from infinity_emb.engine.progress import open_terminal_bar
from infinity_emb.types import Device

COMMAND = [sys.executable, "-m", "infinity_emb", "embed"]
FAKE = ["--engine", "debugengine", "--model-id", "debug"]
NUM_KILL_ROWS = 400_000
NUM_WARM_UP_TEXTS = 500
SLICE_TEXTS = 4000


class Process(NamedTuple):
    """The duration and the largest memory of a process."""

    duration_s: float
    memory_mb: float


def run_process(arguments: Sequence[str]) -> Process:
    start_s = time.monotonic()
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{arguments} ended with {process.returncode}")
    return Process(time.monotonic() - start_s, usage.ru_maxrss / 1024)


def write_rows(path: Path, count: int) -> Path:
    with path.open("w") as file:
        for number in range(count):
            file.write(json.dumps({"id": number, "text": f"row {number} " + "x" * (number % 20)}) + "\n")
    return path


def measure_memory(folder: Path, num_rows: int) -> dict[str, Any]:
    """Return rows/s and memory of a tenth of the rows and of all of them."""
    figures: dict[str, Any] = {}
    for count in (num_rows // 10, num_rows):
        source, output = write_rows(folder / "rows.jsonl", count), folder / f"{count}.parquet"
        process = run_process([*COMMAND, str(source), "-o", str(output), *FAKE])
        rate = count / process.duration_s
        print(f"{count:>9} rows, fake engine: {rate:8.0f} rows/s, {process.memory_mb:6.0f} MB")
        figures[str(count)] = {"rows_per_s": round(rate), "memory_mb": round(process.memory_mb)}
        output.unlink()
    return figures


class Timing(NamedTuple):
    """The tokens that were computed, and the time for them."""

    num_tokens: int
    duration_s: float

    def add(self, other: Timing) -> Timing:
        return Timing(self.num_tokens + other.num_tokens, self.duration_s + other.duration_s)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.duration_s


class SpeedBench:
    """The engine and the texts of both arms."""

    def __init__(self, folder: Path, num_texts: int) -> None:
        short, passages = load_texts(num_short=7200, num_passages=800)
        texts = short + passages
        random.Random(1).shuffle(texts)
        # Texts that come again are different, so that none is computed once for several rows.
        self._texts = [f"{index // len(texts)} {texts[index % len(texts)]}" for index in range(num_texts)]
        self._folder = folder
        self._source = folder / "texts.jsonl"
        self._loop = asyncio.new_event_loop()
        self._engine = load_engine(EngineArgs(model_name_or_path=DEFAULT_MODEL, device=Device.cpu))
        self._loop.run_until_complete(self._engine.astart())
        self._loop.run_until_complete(self._engine.encode(self._texts[:NUM_WARM_UP_TEXTS]))
        self.rows = {"share": Row("job, JSON Lines to Parquet / bare engine, tokens per second", ">= 0.95")}

    def close(self) -> None:
        self._loop.run_until_complete(self._engine.astop())
        self._loop.close()

    def measure(self, num_rounds: int) -> None:
        """Time both arms, a slice of the texts at a time and in turn, each as often first as the other."""
        for _ in range(num_rounds):
            bare, job = Timing(0, 0.0), Timing(0, 0.0)
            for number, start in enumerate(range(0, len(self._texts), SLICE_TEXTS)):
                texts = self._texts[start : start + SLICE_TEXTS]
                if number % 2:
                    job = job.add(self._time_job(texts))
                    bare = bare.add(self._time_bare(texts))
                else:
                    bare = bare.add(self._time_bare(texts))
                    job = job.add(self._time_job(texts))
                share = job.tokens_per_s / bare.tokens_per_s
                print(
                    f"{start + len(texts):>6} texts: bare engine {bare.tokens_per_s:.0f} tokens/s,"
                    f" job {job.tokens_per_s:.0f} tokens/s, {share:.3f}",
                    flush=True,
                )
            self.rows["share"].values.append(share)

    def _time_bare(self, texts: list[str]) -> Timing:
        start_s = time.monotonic()
        embeddings = self._loop.run_until_complete(self._engine.encode(texts))
        return Timing(embeddings.num_tokens, time.monotonic() - start_s)

    def _time_job(self, texts: list[str]) -> Timing:
        self._source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        start_s = time.monotonic()
        executor = EngineExecutor(self._engine, TaskOptions(task="embed"))
        self._loop.run_until_complete(self._run_job(executor))
        return Timing(executor.num_tokens, time.monotonic() - start_s)

    async def _run_job(self, executor: EngineExecutor) -> None:
        columns = Columns.from_options("embed", BulkOptions(output="x"), "embedding")
        source = RowSource(
            find_files([str(self._source)]), input_format="jsonl", output_format="parquet", columns=columns
        )
        [vector] = await executor.compute(["probe"])
        journal = Journal(Layout(self._folder / "texts.parquet", None))
        journal.open({}, overwrite=True)
        job = Job(
            source=source,
            journal=journal,
            executor=executor,
            shard_format=make_format("parquet", source.schema, "embedding", detect_type(vector)),
            rows_per_shard=None,
            probe="probe",
        )
        await job.run(0, open_terminal_bar(None, "", num_done=0))
        journal.finish()


def kill_and_continue(folder: Path, num_kills: int) -> dict[str, Any]:
    """Return the time of an undisturbed job, and of one that was killed so many times."""
    source = write_rows(folder / "killed.jsonl", NUM_KILL_ROWS)
    arguments = [*COMMAND, str(source), *FAKE, "-o"]
    undisturbed_s = run_process([*arguments, str(folder / "undisturbed.jsonl")]).duration_s
    few = write_rows(folder / "few.jsonl", 10)
    start_up_s = run_process([*COMMAND, str(few), *FAKE, "-o", str(folder / "few.npy")]).duration_s
    pause_s = (undisturbed_s - start_up_s) / (num_kills + 2)
    output = folder / "out.jsonl"
    rng = random.Random(2)
    start_s = time.monotonic()
    for _ in range(num_kills):
        process = subprocess.Popen([*arguments, str(output)], stderr=subprocess.DEVNULL)
        time.sleep(start_up_s + rng.uniform(0, pause_s))
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise RuntimeError("the job ended before it was killed; raise NUM_KILL_ROWS")
    run_process([*arguments, str(output)])
    duration_s = time.monotonic() - start_s
    if output.read_bytes() != (folder / "undisturbed.jsonl").read_bytes():
        raise RuntimeError("the output differs from that of an undisturbed job")
    print(
        f"{NUM_KILL_ROWS} rows, killed {num_kills} times: output equal; {duration_s:.1f} s, undisturbed"
        f" {undisturbed_s:.1f} s"
    )
    return {"kills": num_kills, "duration_s": round(duration_s, 1), "undisturbed_s": round(undisturbed_s, 1)}


def main() -> None:
    """Run the parts and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.rows:
            figures["memory"] = measure_memory(folder, options.rows)
        if options.kills:
            figures["kills"] = kill_and_continue(folder, options.kills)
        if options.texts:
            bench = SpeedBench(folder, options.texts)
            try:
                bench.measure(options.rounds)
            finally:
                bench.close()
            print_rows(bench.rows)
            figures["ratios"] = summarize_rows(bench.rows)
    print("\n" + json.dumps({"machine": describe_machine(), **figures}))


if __name__ == "__main__":
    main()
