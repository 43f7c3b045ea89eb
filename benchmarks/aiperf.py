"""Check `infinity_emb bench` against NVIDIA's AIPerf and wrk, which load one server in turn.

    python -m benchmarks.aiperf [--rounds 2] [--clients 16] [--items 1] [--seconds 15] [--model bundled]

All send the same requests in a closed loop. The server has one half of the cores and the load generators the
other half, so that none takes the server's time. The fake engine sleeps 50 ms per batch, so that the figures
differ by the generators and not by the speed of the machine from one turn to the next. AIPerf runs in an
environment of its own, made once of exact versions; wrk is left out where it is not installed. The last line
is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers.environments import AIPERF
from benchmarks.rounds import Row, report
from benchmarks.serve import Server
from benchmarks.texts import bundled_model_folder, load_texts
from benchmarks.wrk import is_installed, run_wrk

MODEL = "all-MiniLM-L6-v2"
SERVER_OPTIONS = {
    "fake": ["--engine", "debugengine", "--model-id", "debug?delay_s=0.05&dimension=384"],
    "bundled": ["--model-id", str(bundled_model_folder())],
}
NUM_TEXTS = 512
WARM_UP_S = 3
# AIPerf starts several processes, and stops them again.
EXTRA_S = 240
# Each line of the file is the body of a request.
WRK_SCRIPT = """
local requests, number = {}, 0
function init()
  for body in io.lines("BODIES") do
    local headers = {["Content-Type"] = "application/json"}
    requests[#requests + 1] = wrk.format("POST", "/v1/embeddings", headers, body)
  end
end
function request()
  number = number % #requests + 1
  return requests[number]
end
function done(summary, latency)
  local us = {latency.mean, latency:percentile(50), latency:percentile(99)}
  local per_s = summary.requests * 1e6 / summary.duration
  print(string.format("FIGURES %f %f %f %f", per_s, us[1] / 1000, us[2] / 1000, us[3] / 1000))
end
"""


class Figures(NamedTuple):
    """What one generator reports of one turn."""

    requests_per_s: float
    mean_ms: float
    p50_ms: float
    p99_ms: float


class Load(NamedTuple):
    """The load that every generator is to make."""

    num_clients: int
    num_items: int
    duration_s: int


class Bench:
    """Hold the server and the requests."""

    def __init__(self, model: str, load: Load, folder: Path) -> None:
        self._load = load
        self._folder = folder
        self._aiperf = AIPERF.find_python("aiperf").with_name("aiperf")
        _write_requests(folder, load.num_items)
        with _half_of_the_cores(for_the_server=True):
            self._server = Server([*SERVER_OPTIONS[model], "--served-model-name", MODEL])
        self._url = f"http://127.0.0.1:{self._server.port}"
        self._num_runs = 0
        self._generators: dict[str, Callable[[], Figures]] = {
            "infinity_emb bench": self._run_ours,
            "AIPerf": self._run_aiperf,
        }
        if is_installed():
            self._generators["wrk"] = self._run_wrk
        self.rows = {
            f"{name}_{field}": Row(f"{field}, infinity_emb bench / {name}", "0.9 to 1.1")
            for name in list(self._generators)[1:]
            for field in Figures._fields
        } | {
            f"{name}_waiting": Row(f"clients of {name} that wait, on average", "")
            for name in self._generators
        }

    def close(self) -> None:
        """Stop the server."""
        self._server.close()

    def measure(self) -> dict[str, float]:
        """Run one turn of each, another one first each time."""
        names = list(self._generators)
        first = self._num_runs % len(names)
        self._num_runs += 1
        with _half_of_the_cores(for_the_server=False):
            figures = {name: self._generators[name]() for name in names[first:] + names[:first]}
        print("; ".join(f"{name} {_describe(each)}" for name, each in figures.items()), file=sys.stderr)
        ours = figures[names[0]]
        waiting = {
            f"{name}_waiting": each.requests_per_s * each.mean_ms / 1000 for name, each in figures.items()
        }
        return waiting | {
            f"{name}_{field}": getattr(ours, field) / getattr(figures[name], field)
            for name in names[1:]
            for field in Figures._fields
        }

    def _run_ours(self) -> Figures:
        load = self._load
        options = {
            "--concurrency": load.num_clients,
            "--items": load.num_items,
            "--duration": load.duration_s,
            "--warmup": WARM_UP_S,
            "--texts": self._folder / "texts.txt",
            "--json": "-",
        }
        command = [sys.executable, "-m", "infinity_emb", "bench", self._url, *_list_words(options)]
        [turn] = json.loads(_run(command, load.duration_s))["turns"]
        if turn["errors"]:
            raise RuntimeError(f"the server refused requests: {turn['errors']}")
        return Figures(*(turn[field] for field in Figures._fields))

    def _run_aiperf(self) -> Figures:
        load = self._load
        artifacts = self._folder / f"run-{self._num_runs}"
        options = {
            "--model": MODEL,
            "--url": self._url,
            "--endpoint-type": "embeddings",
            "--extra-inputs": "encoding_format:base64",
            "--tokenizer": bundled_model_folder(),
            "--input-file": self._folder / "texts.jsonl",
            "--custom-dataset-type": "single_turn",
            "--dataset-sampling-strategy": "sequential",
            "--concurrency": load.num_clients,
            "--benchmark-duration": load.duration_s,
            "--warmup-duration": WARM_UP_S,
            "--artifact-dir": artifacts,
            "--ui": "none",
        }
        command = [str(self._aiperf), "profile", *_list_words(options)]
        with _process_group([*command, "--no-gpu-telemetry", "--no-server-metrics"]) as process:
            output, _ = process.communicate(timeout=load.duration_s + EXTRA_S)
        found = next(artifacts.rglob("profile_export_aiperf.json"), None)
        if found is None:
            raise RuntimeError(f"AIPerf wrote no figures: {output[-2000:]}")
        figures: dict[str, Any] = json.loads(found.read_text())
        latency = figures["request_latency"]
        return Figures(figures["request_throughput"]["avg"], latency["avg"], latency["p50"], latency["p99"])

    def _run_wrk(self) -> Figures:
        script = self._folder / "requests.lua"
        script.write_text(WRK_SCRIPT.replace("BODIES", str(self._folder / "bodies.jsonl")))
        for seconds in (WARM_UP_S, self._load.duration_s):
            printed = run_wrk(self._url, script, num_clients=self._load.num_clients, seconds=seconds)
        return Figures(*map(float, re.findall(r"FIGURES (\S+) (\S+) (\S+) (\S+)", printed)[0]))


def _write_requests(folder: Path, num_items: int) -> None:
    """Write the same requests for each generator, in the form that it reads."""
    texts, _ = load_texts(num_short=NUM_TEXTS, num_passages=1)
    requests = [texts[start : start + num_items] for start in range(0, len(texts), num_items)]
    bodies = [{"model": MODEL, "input": each, "encoding_format": "base64"} for each in requests]
    (folder / "texts.txt").write_text("\n".join(texts))
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"texts": each}) for each in requests))
    (folder / "bodies.jsonl").write_text("\n".join(map(json.dumps, bodies)))


@contextmanager
def _half_of_the_cores(*, for_the_server: bool) -> Iterator[None]:
    """Start processes on one half of the cores: the server on the first, load generators on the second."""
    cores = sorted(os.sched_getaffinity(0))
    middle = len(cores) // 2
    os.sched_setaffinity(0, (cores[:middle] if for_the_server else cores[middle:]) or cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _list_words(options: dict[str, object]) -> list[str]:
    return [str(word) for option in options.items() for word in option]


def _run(command: Sequence[str], duration_s: int) -> str:
    """Run a command, and return what it prints."""
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, timeout=duration_s + EXTRA_S
    )
    return done.stdout


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


def _describe(figures: Figures) -> str:
    latencies = ", ".join(f"{each:.1f}" for each in figures[1:])
    return f"{figures.requests_per_s:.2f}/s, {latencies} ms"


def main() -> None:
    """Run the rounds and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--items", type=int, default=1, help="texts per request [1]")
    parser.add_argument("--seconds", type=int, default=15, help="of each turn, after a warm-up [15]")
    parser.add_argument("--model", choices=list(SERVER_OPTIONS), default="fake", help="of the server [fake]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.model, Load(options.clients, options.items, options.seconds), Path(folder))
        about = f"{options.model} model, {options.clients} clients, {options.items} texts per request"
        report(bench, options.rounds, about=about)


if __name__ == "__main__":
    main()
