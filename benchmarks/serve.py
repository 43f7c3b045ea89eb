"""Measure ratios of speed: our engine to sentence-transformers, our server to our engine.

    python -m benchmarks.serve [--rounds 5] [--engine-option device_id=0,1]

All peers take turns within one run, each in its own process. The table shows the median ratio of the rounds
with its spread, and the last line is JSON. docs/measurements.md explains each row.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import version
from typing import Any

import numpy as np

from benchmarks.http_load import find_free_port, make_requests, median_ms, run_load
from benchmarks.matmul import count_matmul_flops_per_token, measure_matmul_flops_per_s
from benchmarks.rounds import Row, describe_machine, print_rows, run_rounds, summarize_rows
from benchmarks.subjects import Peer, measure_resident_mib
from benchmarks.texts import bundled_model_folder, load_texts, make_token_counter

NUM_SHORT, NUM_PASSAGES = 1024, 256
PASSAGES_PER_REQUEST = 32


class Server:
    """Run `infinity_emb v2` in its own process, on a free loopback port."""

    def __init__(self, flags: list[str], *, log: int | None = None, module: str = "infinity_emb") -> None:
        """Start the server and wait until it is ready.

        log: file descriptor for its log; None for the stderr of this process.
        module: takes the command line.
        """
        self.port = find_free_port()
        command = [sys.executable, "-m", module, "v2", "--host", "127.0.0.1"]
        started_s = time.perf_counter()
        self._process = subprocess.Popen(
            [*command, "--port", str(self.port), "--log-level", "warning", *flags], stderr=log
        )
        self._wait_until_ready()
        self.ready_s = time.perf_counter() - started_s

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def resident_mib(self) -> float:
        return measure_resident_mib(self.pid)

    def close(self) -> int:
        """Stop the server with SIGTERM and return its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + 300
        while time.monotonic() < deadline_s and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=5):
                    return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("the server did not become ready")


class Bench:
    """Hold the peers and run the rounds."""

    def __init__(self, options: dict[str, Any]) -> None:
        model = str(bundled_model_folder())
        self.short, self.passages = load_texts(num_short=NUM_SHORT, num_passages=NUM_PASSAGES)
        self.reference = Peer("sentence-transformers", model)
        self.engine = Peer("engine", model, **options)
        self.server = Server(_format_flags(options))
        self.rows = {
            "st_short": Row("engine / sentence-transformers, short queries", ">= 2.2"),
            "st_passages": Row("engine / sentence-transformers, passages", ">= 2.2"),
            "http_passages": Row("server / engine, 32 passages per request, 4 clients", ">= 0.90"),
            "http_short": Row("server / engine given one list, one query per request, 32 clients", ">= 0.80"),
            "http_short_same": Row("server / engine called by 32 coroutines, the same queries", ""),
            "http_float": Row("the same passages as JSON floats instead of base64", ""),
            "lone_ms": Row("one lone query over its bare forward pass, ms", "<= 2.0"),
            "ceiling": Row("share of the machine's matrix-product rate, short queries", ""),
            "ceiling_st": Row("the same share of sentence-transformers", ""),
        }

    def close(self) -> None:
        """Stop all processes."""
        self.reference.close()
        self.engine.close()
        self.server.close()

    def measure(self) -> dict[str, float]:
        """Run one round and return the value of each row."""
        st_short = self.reference.ask("embed", texts=self.short)["s"]
        engine_short = self.engine.ask("embed", texts=self.short)["s"]
        engine_each = self.engine.ask("embed_each", texts=self.short, num_clients=32)["s"]
        http_short, _ = self._load(self.short, per_request=1, num_clients=32)
        flops_per_s = measure_matmul_flops_per_s()
        st_passages = self.reference.ask("embed", texts=self.passages)["s"]
        engine_passages = self.engine.ask("embed", texts=self.passages)["s"]
        http_passages, _ = self._load(self.passages, per_request=PASSAGES_PER_REQUEST, num_clients=4)
        http_float, _ = self._load(
            self.passages, per_request=PASSAGES_PER_REQUEST, num_clients=4, encoding_format="float"
        )
        needed_s = self._count_short_tokens() * count_matmul_flops_per_token() / flops_per_s
        return {
            "st_short": st_short / engine_short,
            "st_passages": st_passages / engine_passages,
            "http_passages": engine_passages / http_passages,
            "http_short": engine_short / http_short,
            "http_short_same": engine_each / http_short,
            "http_float": engine_passages / http_float,
            "lone_ms": self._measure_overhead_ms(),
            "ceiling": needed_s / engine_short,
            "ceiling_st": needed_s / st_short,
        }

    def _measure_overhead_ms(self, num_turns: int = 6, per_turn: int = 10) -> float:
        """Return what HTTP, tokenizer and queue add to the forward pass of one query, in short turns."""
        query = self.short[7]
        forward_ms: list[float] = []
        http_s: list[float] = []
        for _ in range(num_turns):
            forward_ms += self.engine.ask("forward", text=query, num_runs=per_turn)["ms"]
            http_s += self._load([query] * per_turn, per_request=1, num_clients=1)[1]
        return median_ms(http_s) - float(np.median(forward_ms))

    def _count_short_tokens(self) -> int:
        return sum(make_token_counter(bundled_model_folder())(self.short))

    def _load(
        self, texts: list[str], *, per_request: int, num_clients: int, encoding_format: str = "base64"
    ) -> tuple[float, list[float]]:
        requests = make_requests(
            texts, per_request=per_request, port=self.server.port, encoding_format=encoding_format
        )
        return asyncio.run(run_load(requests, port=self.server.port, num_clients=num_clients))

    def measure_footprint(self) -> dict[str, dict[str, float]]:
        """Return the time to ready and the resident memory after the rounds, of each process."""
        return {
            "sentence-transformers": {
                "ready_s": self.reference.ready_s,
                "resident_mib": self.reference.ask("memory")["resident_mib"],
            },
            "engine": {
                "ready_s": self.engine.ready_s,
                "resident_mib": self.engine.ask("memory")["resident_mib"],
            },
            "server": {"ready_s": self.server.ready_s, "resident_mib": self.server.resident_mib},
        }


def main() -> None:
    """Run the rounds and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine-option", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    options = dict(option.split("=", 1) for option in arguments.engine_option)
    bench = Bench(options)
    try:
        run_rounds(bench.rows, bench.measure, arguments.rounds)
        footprint = bench.measure_footprint()
        _print_report(bench, footprint, options)
    finally:
        bench.close()


def _print_report(bench: Bench, footprint: dict[str, dict[str, float]], options: dict[str, Any]) -> None:
    count_tokens = make_token_counter(bundled_model_folder())
    short, passages = count_tokens(bench.short), count_tokens(bench.passages)
    print(
        f"\n{describe_machine()}, batches of {bench.engine.ready['batch_tokens']} tokens, options {options}"
    )
    print(
        f"{len(short)} queries of {np.mean(short):.0f} tokens ({min(short)} to {max(short)}),"
        f" {len(passages)} passages of {np.mean(passages):.0f} ({min(passages)} to {max(passages)},"
        " cut at 256 by the model)\n"
    )
    print_rows(bench.rows)
    print()
    for name, figures in footprint.items():
        print(
            f"{name:<24} ready after {figures['ready_s']:5.1f} s, {figures['resident_mib']:6.0f} MiB resident"
        )
    result = {
        "machine": describe_machine(),
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "versions": {name: version(name) for name in ("torch", "transformers", "sentence-transformers")},
        "rounds": len(next(iter(bench.rows.values())).values),
        "ratios": summarize_rows(bench.rows),
        "footprint": footprint,
    }
    print("\n" + json.dumps(result))


def _format_flags(options: dict[str, Any]) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]


if __name__ == "__main__":
    main()
