"""Measure what front-end processes bring: requests per second, and processor time per request.

    python -m benchmarks.frontends [--rounds 5] [--seconds 4]

The fake engine computes nothing, so that serving is what is measured, and wrk, a compiled program, sends the
requests. One process and two front ends take turns on all cores. Where wrk and the servers share few cores,
the rates say little; the processor time per request is what a core can do, and the simulation says what that
gives on 16 cores. The last line is JSON.
"""

from __future__ import annotations

import argparse
import heapq
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from benchmarks.rounds import Row, report
from benchmarks.wrk import is_installed, run_wrk

NUM_CONNECTIONS = 32
MODEL = "debug?dimension=1024"
# Workload → the body of its requests.
BODIES = {
    "single": '{"input": "how do front ends share the work of one engine"}',
    "passages": json.dumps({"input": [f"passage {number} of a request" for number in range(32)]}),
}
SCRIPT = """
wrk.method = "POST"
wrk.path = "/embeddings"
wrk.body = [[{body}]]
wrk.headers["Content-Type"] = "application/json"
"""
# One core is left for the engine process.
SIMULATED_FRONT_ENDS = (1, 2, 4, 8, 15)
SIMULATED_CLIENTS = 512


class Subject:
    """A running server, and the processor time of its processes."""

    def __init__(self, num_front_ends: int) -> None:
        self.num_front_ends = num_front_ends
        options = ["--engine", "debugengine", "--model-id", MODEL, "--host", "127.0.0.1", "--port", "0"]
        self._log = tempfile.NamedTemporaryFile()  # noqa: SIM115 (closed in `close`)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infinity_emb", "v2", *options, "--api-servers", str(num_front_ends)],
            stderr=self._log,
        )
        self.url = self._wait_for_url()
        main = psutil.Process(self.process.pid)
        self.processes: list[psutil.Process] = [main, *main.children(recursive=True)]

    def _wait_for_url(self) -> str:
        for _ in range(600):
            found = re.search(r"listening on (http://[^,\s]+)", Path(self._log.name).read_text())
            if found:
                return found.group(1)
            time.sleep(0.1)
        self.close()
        raise RuntimeError("the server did not start")

    def read_cpu_s(self) -> Sequence[float]:
        """Return the processor time of the main process, and of all others together."""
        times = [each.cpu_times() for each in self.processes]
        seconds = [each.user + each.system for each in times]
        return seconds[0], sum(seconds[1:])

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self._log.close()


class Bench:
    """One process and two front ends, measured in turn with each workload."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._folder = tempfile.TemporaryDirectory()
        for name, body in BODIES.items():
            Path(self._folder.name, name).write_text(SCRIPT.replace("{body}", body))
        self.subjects: list[Subject] = []
        for number in (1, 2):
            self.subjects.append(Subject(number))
        self.rows = {
            f"{workload}_{name}": Row(f"{text}, {about}", goal)
            for workload, about in (("single", "single queries"), ("passages", "32 x 1,024 floats"))
            for name, text, goal in (
                ("rate", "requests/s, one process", ""),
                ("ratio", "requests/s, 2 front ends / one process", ">= 1.80 with 4 cores"),
                ("alone_us", "processor us per request, one process", "<= 150" * (workload == "single")),
                ("front_us", "processor us per request, front ends", ""),
                ("engine_us", "processor us per request, engine process", ""),
                *(
                    (f"{number}_of_16", f"simulated requests/s, 16 cores, {number} front ends", "")
                    for number in SIMULATED_FRONT_ENDS
                ),
            )
        }

    def measure(self) -> Mapping[str, float]:
        """Load each subject with each workload."""
        figures: dict[str, float] = {}
        for workload in BODIES:
            alone, several = (self._load(subject, workload) for subject in self.subjects)
            figures |= {
                f"{workload}_rate": alone[0],
                f"{workload}_ratio": several[0] / alone[0],
                f"{workload}_alone_us": alone[1],
                f"{workload}_engine_us": several[1],
                f"{workload}_front_us": several[2],
            }
            figures |= {
                f"{workload}_{number}_of_16": simulate_rate(several[2], several[1], number)
                for number in SIMULATED_FRONT_ENDS
            }
        return figures

    def _load(self, subject: Subject, workload: str) -> tuple[float, float, float]:
        """Return requests per second, and the processor time of each in the main process and the others."""
        before = subject.read_cpu_s()
        script = Path(self._folder.name, workload)
        printed = run_wrk(subject.url, script, num_clients=NUM_CONNECTIONS, seconds=self._seconds)
        after = subject.read_cpu_s()
        number = int(re.findall(r"(\d+) requests in", printed)[0])
        rate = float(re.findall(r"Requests/sec:\s+([\d.]+)", printed)[0])
        main_us, others_us = (
            1e6 * (late - early) / number for early, late in zip(before, after, strict=True)
        )
        return rate, main_us, others_us

    def close(self) -> None:
        for subject in self.subjects:
            subject.close()
        self._folder.cleanup()


def simulate_rate(
    front_us: float, engine_us: float, num_front_ends: int, *, num_requests: int = 20_000
) -> float:
    """Return the requests per second of closed-loop clients, of which each connection has one front end.

    A front end works one half of its time on a request before the engine process and one half after it; each
    process has a core, and serves in the order of arrival.
    """
    free_s = [0.0] * (num_front_ends + 1)  # when each process is free; the engine process comes last
    stages = [(client / 1e9, client, 0) for client in range(SIMULATED_CLIENTS)]  # all begin at once
    heapq.heapify(stages)
    num_done, now_s = 0, 0.0
    while num_done < num_requests:
        now_s, client, stage = heapq.heappop(stages)
        process = num_front_ends if stage == 1 else client % num_front_ends
        seconds = (engine_us if stage == 1 else front_us / 2) / 1e6
        free_s[process] = max(free_s[process], now_s) + seconds
        heapq.heappush(stages, (free_s[process], client, (stage + 1) % 3))
        num_done += stage == 2
    return num_done / now_s


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each load (default 4)")
    options = parser.parse_args()
    if not is_installed():
        print("skipped: wrk is not installed (Debian: apt-get install wrk)")
        return 0
    about = f"{NUM_CONNECTIONS} connections of wrk, {options.seconds} s each"
    report(Bench(options.seconds), options.rounds, about=about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
