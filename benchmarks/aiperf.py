"""Check `infinity_emb bench` against NVIDIA's AIPerf: both load one server in turn with the same texts.

    python -m benchmarks.aiperf [--rounds 3] [--clients 16] [--seconds 15]

AIPerf runs in an environment of its own, made once of exact versions. Both are closed loops of one text a
request. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers.environments import AIPERF
from benchmarks.rounds import Row, report
from benchmarks.serve import Server
from benchmarks.texts import bundled_model_folder, load_texts

MODEL = "all-MiniLM-L6-v2"
NUM_TEXTS = 512
WARM_UP_S = 5
# AIPerf starts several processes, and stops them again.
EXTRA_S = 240


class Figures(NamedTuple):
    """What one generator reports of one turn."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float


class Bench:
    """Hold the server and the texts."""

    def __init__(self, num_clients: int, duration_s: int, folder: Path) -> None:
        self._num_clients = num_clients
        self._duration_s = duration_s
        self._folder = folder
        self._aiperf = AIPERF.find_python("aiperf").with_name("aiperf")
        texts, _ = load_texts(num_short=NUM_TEXTS, num_passages=1)
        (folder / "texts.txt").write_text("\n".join(texts))
        (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
        self._server = Server(["--model-id", str(bundled_model_folder()), "--served-model-name", MODEL])
        self._url = f"http://127.0.0.1:{self._server.port}"
        self._num_runs = 0
        self.rows = {
            "requests_per_s": Row("requests/s, infinity_emb bench / AIPerf", "0.9 to 1.1"),
            "p50": Row("p50, the same", ""),
            "p99": Row("p99, the same", ""),
        }

    def close(self) -> None:
        """Stop the server."""
        self._server.close()

    def measure(self) -> dict[str, float]:
        """Run one turn of each, the other one first each time."""
        runs = [self._run_ours, self._run_aiperf]
        self._num_runs += 1
        by_run = {run: run() for run in (runs if self._num_runs % 2 else reversed(runs))}
        ours, theirs = by_run[self._run_ours], by_run[self._run_aiperf]
        print(f"infinity_emb bench {ours}\nAIPerf {theirs}", file=sys.stderr)
        return {
            "requests_per_s": ours.requests_per_s / theirs.requests_per_s,
            "p50": ours.p50_ms / theirs.p50_ms,
            "p99": ours.p99_ms / theirs.p99_ms,
        }

    def _run_ours(self) -> Figures:
        load = ["--concurrency", str(self._num_clients), "--duration", str(self._duration_s)]
        texts = ["--texts", str(self._folder / "texts.txt")]
        command = [sys.executable, "-m", "infinity_emb", "bench", self._url, *load, *texts, "--json", "-"]
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, timeout=self._duration_s + EXTRA_S
        )
        [turn] = json.loads(done.stdout)["turns"]
        return Figures(turn["requests_per_s"], turn["p50_ms"], turn["p99_ms"])

    def _run_aiperf(self) -> Figures:
        artifacts = self._folder / f"run-{self._num_runs}"
        options = {
            "--model": MODEL,
            "--url": self._url,
            "--endpoint-type": "embeddings",
            "--tokenizer": str(bundled_model_folder()),
            "--input-file": str(self._folder / "texts.jsonl"),
            "--custom-dataset-type": "single_turn",
            "--concurrency": str(self._num_clients),
            "--benchmark-duration": str(self._duration_s),
            "--warmup-duration": str(WARM_UP_S),
            "--artifact-dir": str(artifacts),
            "--ui": "none",
        }
        command = [str(self._aiperf), "profile", *(part for option in options.items() for part in option)]
        with _process_group([*command, "--no-gpu-telemetry", "--no-server-metrics"]) as process:
            output, _ = process.communicate(timeout=self._duration_s + EXTRA_S)
        found = next(artifacts.rglob("profile_export_aiperf.json"), None)
        if found is None:
            raise RuntimeError(f"AIPerf wrote no figures: {output[-2000:]}")
        figures: dict[str, Any] = json.loads(found.read_text())
        latency = figures["request_latency"]
        return Figures(figures["request_throughput"]["avg"], latency["p50"], latency["p99"])


@contextmanager
def _process_group(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a command, and end it with all of its processes."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main() -> None:
    """Run the rounds and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.clients, options.seconds, Path(folder))
        report(bench, options.rounds, about=f"{options.clients} clients, one text a request")


if __name__ == "__main__":
    main()
