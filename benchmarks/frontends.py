"""Measure what front-end processes bring: requests per second, and processor time per request.

    python -m benchmarks.frontends [--rounds 5] [--seconds 4] [--static]

The fake engine computes nothing, so that serving is what is measured, and wrk, a compiled program, sends the
requests. One process and two front ends take turns on all cores. Where wrk and the servers share few cores,
the rates say little; the processor time per request is what a core can do, and the simulation says what that
gives on 16 cores. The time of a single query is split by stages with a sampler; two apps that do less show
what is the least. With `--static`, a static model replaces the fake engine, and requests are long as
well. One connection shows what a lone client gains or loses. The last line is JSON.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.kinds import save_static
from benchmarks.loaded_servers import LoadedServer, LoadResult, SampledServer
from benchmarks.rounds import Row, report
from benchmarks.stages import STAGES, WORKER, split_by_stage
from benchmarks.wrk import is_installed

NUM_CONNECTIONS = 32
SERVE = ("v2", "--host", "127.0.0.1", "--port", "0")
FAKE = (*SERVE, "--engine", "debugengine", "--model-id", "debug?dimension=1024")
FLOORS = {
    "bare": "an ASGI app that sends a ready response",
    "fastapi": "FastAPI, a pydantic body, and orjson",
}


class Workload(NamedTuple):
    """The body of the requests, and the connections that send them in a closed loop."""

    about: str
    body: str
    num_connections: int = NUM_CONNECTIONS
    has_lengths: bool = False  # whether only a model that reads texts makes it interesting


QUERY = '{"input": "how do front ends share the work of one engine"}'
PASSAGE = "A passage of a document that is about as long as those which are indexed for a search. " * 8
WORKLOADS = {
    "single": Workload("single queries", QUERY),
    "passages": Workload(
        "32 short texts", json.dumps({"input": [f"passage {number} of a request" for number in range(32)]})
    ),
    "lone": Workload("single queries of one connection", QUERY, 1),
    "long": Workload(
        "32 passages", json.dumps({"input": [f"{n} {PASSAGE}" for n in range(32)]}), has_lengths=True
    ),
    "bulk": Workload(
        "512 passages, one connection", json.dumps({"input": [f"{n} {PASSAGE}" for n in range(512)]}), 1, True
    ),
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


class Bench:
    """One process and two front ends with each workload, and the stages of a single query, in turn."""

    def __init__(self, seconds: float, *, is_static: bool) -> None:
        self._seconds = seconds
        self._folder = tempfile.TemporaryDirectory()
        self._workloads = {
            name: each for name, each in WORKLOADS.items() if is_static or not each.has_lengths
        }
        for name, workload in self._workloads.items():
            Path(self._folder.name, name).write_text(SCRIPT.replace("{body}", workload.body))
        serve = (*SERVE, "--model-id", save_static(Path(self._folder.name, "model"))) if is_static else FAKE
        self._servers: list[LoadedServer] = []
        self._alone, self._several = (
            self._start(LoadedServer("-m", "infinity_emb", *serve, "--api-servers", str(number)))
            for number in (1, 2)
        )
        self._floors = {} if is_static else {name: self._start(SampledServer(name)) for name in FLOORS}
        self._sampled = None if is_static else SampledServer(*serve)
        if self._sampled is not None:
            self._servers.append(self._sampled)
        self.rows = {
            key: row for name, each in self._workloads.items() for key, row in _make_rows(name, each)
        }
        if self._sampled is not None:
            self.rows |= {stage: Row(f"us per single query: {stage}", "") for stage in (*STAGES, WORKER)}
            self.rows |= {
                name: Row(f"us per single query, floor: {text}", "") for name, text in FLOORS.items()
            }

    def measure(self) -> Mapping[str, float]:
        """Load each server with each workload."""
        figures: dict[str, float] = {}
        for name in self._workloads:
            alone, several = (self._load(server, name) for server in (self._alone, self._several))
            front_us, engine_us = several.others_us, several.main_us
            figures |= {
                f"{name}_rate": alone.requests_per_s,
                f"{name}_ratio": several.requests_per_s / alone.requests_per_s,
                f"{name}_alone_us": alone.main_us,
                f"{name}_engine_us": engine_us,
                f"{name}_front_us": front_us,
            }
            if self._workloads[name].num_connections > 1:
                figures |= {
                    f"{name}_{number}_of_16": simulate_rate(front_us, engine_us, number)
                    for number in SIMULATED_FRONT_ENDS
                }
        if self._sampled is not None:
            self._sampled.take_record()
            sampled = self._load(self._sampled, "single")
            figures |= split_by_stage(self._sampled.take_record(), sampled.num_requests)
        return figures | {name: self._load(floor, "single").main_us for name, floor in self._floors.items()}

    def _start(self, server: LoadedServer) -> LoadedServer:
        self._servers.append(server)
        return server

    def _load(self, server: LoadedServer, workload: str) -> LoadResult:
        script = Path(self._folder.name, workload)
        num_clients = self._workloads[workload].num_connections
        return server.load(script, num_clients=num_clients, seconds=self._seconds)

    def close(self) -> None:
        for server in self._servers:
            server.close()
        self._folder.cleanup()


def _make_rows(name: str, workload: Workload) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a workload."""
    is_several = workload.num_connections > 1
    goals = {"ratio": ">= 1.80 with 4 cores" * is_several, "alone_us": "<= 150" * (name == "single")}
    for key, text in {
        "rate": "requests/s, one process",
        "ratio": "requests/s, 2 front ends / one process",
        "alone_us": "processor us per request, one process",
        "front_us": "processor us per request, front ends",
        "engine_us": "processor us per request, engine process",
        **{
            f"{number}_of_16": f"simulated requests/s, 16 cores, {number} front ends"
            for number in SIMULATED_FRONT_ENDS
            if is_several
        },
    }.items():
        yield f"{name}_{key}", Row(f"{text}, {workload.about}", goals.get(key, ""))


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
    parser.add_argument("--static", action="store_true", help="serve a static model")
    options = parser.parse_args()
    if not is_installed():
        print("skipped: wrk is not installed (Debian: apt-get install wrk)")
        return 0
    about = f"{NUM_CONNECTIONS} connections of wrk, {options.seconds} s each"
    report(Bench(options.seconds, is_static=options.static), options.rounds, about=about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
