"""Compare our server with others of the same model, turn by turn in one run.

    python -m benchmarks.peers [--rounds 5] [--peer fastembed]

All servers compute the default model in float32 and send vectors as JSON; the clients are on the same cores.
The order of the servers changes with each round. The first row of a table is the limit of the machine: the
model's matrix products and nothing else. A peer that cannot be installed or started is left out, with the
reason. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from benchmarks.cpu_clocks import read_cpu_time
from benchmarks.http_load import make_requests, run_load
from benchmarks.matmul import count_matmul_flops_per_token, measure_matmul_flops_per_s
from benchmarks.peers.environments import PEERS
from benchmarks.peers.servers import (
    Listening,
    PeerServer,
    PeerUnavailable,
    check_same_model,
    make_peer_folder,
)
from benchmarks.rounds import describe_machine
from benchmarks.serve import Server
from benchmarks.texts import bundled_model_folder, load_texts, make_token_counter

OURS = "this server"
MAX_TOKENS = 256  # of the default model


@dataclass(frozen=True, slots=True)
class Workload:
    """The requests of one row of the table.

    goals: peer → lowest ratio that is asked for.
    """

    name: str
    texts: Sequence[str]
    per_request: int
    num_clients: int
    goals: Mapping[str, float]
    num_tokens: int

    @property
    def num_requests(self) -> int:
        return len(self.texts) // self.per_request


@dataclass(slots=True)
class Figures:
    """What one server reached with one workload, a value per round."""

    requests_per_s: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)  # of the server, per request
    client_cpu_ms: list[float] = field(default_factory=list)


class Bench:
    """Hold the servers and what was measured of them."""

    def __init__(self, peers: Sequence[str]) -> None:
        """Start the servers. `skipped` says why a peer is missing."""
        self.workloads = make_workloads()
        self.skipped: dict[str, str] = {}
        self.limits: dict[str, list[float]] = {each.name: [] for each in self.workloads}
        self._stack = contextlib.ExitStack()
        self.servers: dict[str, Listening] = {}
        with contextlib.ExitStack() as stack:
            ours = Server(["--model-id", str(bundled_model_folder())])
            stack.callback(ours.close)
            self.servers[OURS] = ours
            for name in peers:
                self._start(name, stack)
            self._stack = stack.pop_all()
        self.figures = {(each.name, name): Figures() for each in self.workloads for name in self.servers}

    def _start(self, name: str, stack: contextlib.ExitStack) -> None:
        folder = make_peer_folder()
        stack.callback(shutil.rmtree, folder)
        try:
            peer = PeerServer(name, folder)
            stack.callback(peer.close)
            check_same_model(self.servers[OURS], peer, list(self.workloads[1].texts[:8]))
        except PeerUnavailable as exc:
            self.skipped[name] = str(exc)
        else:
            self.servers[name] = peer

    def close(self) -> None:
        """Stop all servers."""
        self._stack.close()

    def run(self, num_rounds: int) -> None:
        """Run one round as a warm-up, then those that count."""
        for number in range(num_rounds + 1):
            names = list(self.servers)
            first = number % len(names)
            for workload in self.workloads:
                limit = measure_limit(workload)
                for name in names[first:] + names[:first]:
                    self._measure(workload, name, is_counted=number > 0)
                if number:
                    self.limits[workload.name].append(limit)

    def _measure(self, workload: Workload, name: str, *, is_counted: bool) -> None:
        server = self.servers[name]
        port = server.port
        requests = make_requests(
            list(workload.texts), per_request=workload.per_request, port=port, encoding_format="float"
        )
        before = read_cpu_time(server.pid)
        seconds, latencies = asyncio.run(run_load(requests, port=port, num_clients=workload.num_clients))
        used = read_cpu_time(server.pid).since(before)
        if is_counted:
            figures = self.figures[workload.name, name]
            figures.requests_per_s.append(len(requests) / seconds)
            figures.p50_ms.append(float(np.percentile(latencies, 50)) * 1000)
            figures.p99_ms.append(float(np.percentile(latencies, 99)) * 1000)
            figures.cpu_ms.append((used.loop_s + used.other_s) / len(requests) * 1000)
            figures.client_cpu_ms.append(used.generator_s / len(requests) * 1000)


def make_workloads() -> list[Workload]:
    """Return the three workloads."""
    short, passages = load_texts(num_short=512, num_passages=128)

    def make(name: str, texts: list[str], per_request: int, num_clients: int, goal: float) -> Workload:
        counted = make_token_counter(bundled_model_folder())(texts)
        num_tokens = sum(min(tokens, MAX_TOKENS) for tokens in counted)
        goals = {"infinity_emb-0.0.77": goal}
        return Workload(name, texts, per_request, num_clients, goals, num_tokens)

    return [
        make("single queries, 32 clients", short, 1, 32, 2.6),
        make("32 passages a request, 4 clients", passages, 32, 4, 2.3),
        make("a lone query, 1 client", short[::16], 1, 1, 1.3),
    ]


def measure_limit(workload: Workload) -> float:
    """Return the requests/s at which the matrix products alone take all the time.

    A lone query has products of its few tokens; with many clients they are joined into large ones.
    """
    tokens_per_request = workload.num_tokens / workload.num_requests
    num_rows = round(tokens_per_request) if workload.num_clients == 1 else 1024
    flops_per_request = tokens_per_request * count_matmul_flops_per_token()
    return measure_matmul_flops_per_s(num_rows) / flops_per_request


def main() -> None:
    """Run the rounds and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", choices=list(PEERS.by_name), action="append")
    arguments = parser.parse_args()
    bench = Bench(arguments.peer or list(PEERS.by_name))
    try:
        bench.run(arguments.rounds)
    finally:
        bench.close()
    print_report(bench)


def print_report(bench: Bench) -> None:
    """Print a table per workload, the peers that are missing, and the JSON line."""
    print(f"\n{describe_machine()}; all-MiniLM-L6-v2 in float32; median of the rounds\n")
    result: dict[str, object] = {}
    for workload in bench.workloads:
        print_workload(bench, workload)
        result[workload.name] = {
            "limit_requests_per_s": bench.limits[workload.name],
            **{name: asdict(bench.figures[workload.name, name]) for name in bench.servers},
        }
    for name, reason in bench.skipped.items():
        print(f"skipped {name}: {reason}")
    print("\n" + json.dumps({"machine": describe_machine(), "skipped": bench.skipped, "workloads": result}))


def print_workload(bench: Bench, workload: Workload) -> None:
    """Print the limit, and a row per server with its CPU time, that of the clients, and ratios to it."""
    limit = float(np.median(bench.limits[workload.name]))
    cpu_ms = len(os.sched_getaffinity(0)) / limit * 1000  # the products take all cores
    print(f"{workload.name}: {workload.num_tokens / workload.num_requests:,.0f} tokens a request")
    print(
        f"{'':<24}{'requests/s':>11}{'of limit':>10}{'p50 ms':>9}{'p99 ms':>9}{'CPU ms':>9}{'clients':>9}"
        f"{'limit / this':>14}   ours / this, range"
    )
    print(f"{'the products alone':<24}{limit:>11.1f}{1:>10.2f}{1000 / limit:>9.1f}{'':>9}{cpu_ms:>9.2f}")
    for name in bench.servers:
        print(_format_row(bench, workload, name, limit))
    print()


def _format_row(bench: Bench, workload: Workload, name: str, limit: float) -> str:
    figures = bench.figures[workload.name, name]
    ours = bench.figures[workload.name, OURS].requests_per_s
    rate, p50, p99, cpu, client = (
        float(np.median(each))
        for each in (
            *(figures.requests_per_s, figures.p50_ms, figures.p99_ms),
            *(figures.cpu_ms, figures.client_cpu_ms),
        )
    )
    row = f"{name:<24}{rate:>11.1f}{rate / limit:>10.2f}{p50:>9.1f}{p99:>9.1f}{cpu:>9.2f}{client:>9.2f}"
    row += f"{limit / rate:>14.2f}"
    if name == OURS:
        return row
    ratios = [our / their for our, their in zip(ours, figures.requests_per_s, strict=True)]
    goal = f", goal {workload.goals[name]}" if name in workload.goals else ""
    return f"{row}   {np.median(ratios):.2f}, {min(ratios):.2f} … {max(ratios):.2f}{goal}"


if __name__ == "__main__":
    main()
