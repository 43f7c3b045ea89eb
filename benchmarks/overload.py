"""Measure a server at several times the load that it sustains, as ratios to its peak in the same run.

    python -m benchmarks.overload [--rounds 3] [--seconds 20] [--factor 5] [--only queries]

First, enough clients to keep it busy, each waiting for its responses (the peak); then `--factor` times as
many requests per second, sent whether or not the server keeps up, while `/health` is asked ten times a
second on new connections. Each accepted response is compared with the vectors of its texts computed alone.
The model is the bundled one. The load generator shares the cores with the server; a table shows who used
them. docs/measurements.md explains each row.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.cpu_clocks import CpuTime, read_cpu_time
from benchmarks.http_load import make_requests
from benchmarks.overload_account import (
    MAX_HEALTH_P99_S,
    Account,
    Vectors,
    find_health_p99_s,
    read_overflows,
    read_vectors,
)
from benchmarks.raw_load import PROBE, Answer, RawLoad
from benchmarks.rounds import Row, describe_machine, print_rows, run_rounds, summarize_rows
from benchmarks.serve import NUM_PASSAGES, NUM_SHORT, PASSAGES_PER_REQUEST, Server
from benchmarks.texts import bundled_model_folder, load_texts

MAX_WAIT_S = 8
# Left out of the results: until the queue is full, every request is accepted.
FILL_S = 2 * MAX_WAIT_S
# For responses to requests that were accepted last.
DRAIN_S = 60.0
_HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass
class Kind:
    """One kind of request, and the vectors of its texts, each computed alone.

    expected: (requests, texts per request, D) float32.
    """

    about: str
    num_clients: int
    requests: list[bytes]
    expected: Vectors


class Bench:
    """Run one server, and send it two kinds of requests."""

    def __init__(self, seconds: float, factor: float, only: str) -> None:
        self.server = Server(
            ["--model-id", str(bundled_model_folder()), "--max-queue-wait-s", str(MAX_WAIT_S)]
        )
        self._seconds, self._factor = seconds, factor
        short, passages = load_texts(num_short=NUM_SHORT, num_passages=NUM_PASSAGES)
        kinds = {
            "passages": (f"{PASSAGES_PER_REQUEST} passages per request", 3, passages, PASSAGES_PER_REQUEST),
            "queries": ("one query per request", 32, short, 1),
        }
        self._kinds = {
            name: self._make_kind(*arguments) for name, arguments in kinds.items() if only in ("", name)
        }
        self.accounts = {kind: Account() for kind in self._kinds}
        self.cpu_rows: dict[str, list[Mapping[str, float]]] = {}
        self.rows = {}
        for name, kind in self._kinds.items():
            about = kind.about
            self.rows[f"{name}_accepted"] = Row(
                f"answered at {factor:g}x the peak / peak, {about}", ">= 0.90"
            )
            self.rows[f"{name}_refused_ms"] = Row("    median time to a 429, ms", "milliseconds")
            self.rows[f"{name}_refused_p99_ms"] = Row("    99th percentile of it, ms", "milliseconds")
            self.rows[f"{name}_health_p99_ms"] = Row(
                "    99th percentile of /health, ms", f"< {1000 * MAX_HEALTH_P99_S:g}"
            )
            self.rows[f"{name}_accepted_s"] = Row("    median time to a response, s", f"about {MAX_WAIT_S}")

    def close(self) -> int:
        """Stop the server and return its exit code."""
        return self.server.close()

    def summarize_cpu(self) -> dict[str, dict[str, float]]:
        """Return the medians of all rounds."""
        return {
            name: {key: float(np.median([each[key] for each in rounds])) for key in rounds[0]}
            for name, rounds in self.cpu_rows.items()
        }

    def measure(self) -> dict[str, float]:
        """Run one round and return the value of each row."""
        values: dict[str, float] = {}
        for name, kind in self._kinds.items():
            values |= {f"{name}_{key}": value for key, value in self._overload(name, kind).items()}
        return values

    def _make_kind(self, about: str, num_clients: int, texts: list[str], per_request: int) -> Kind:
        alone = self._run_closed(self._make_requests(texts, 1), num_clients=1)
        expected = np.concatenate([read_vectors(answer) for answer in _sort(alone)])
        return Kind(
            about,
            num_clients,
            self._make_requests(texts, per_request),
            expected.reshape(-1, per_request, expected.shape[1]),
        )

    def _overload(self, name: str, kind: Kind) -> dict[str, float]:
        before = read_cpu_time(self.server.pid)
        peak = self._run_closed(kind.requests, num_clients=kind.num_clients)
        took = read_cpu_time(self.server.pid).since(before)
        peak_per_s = len(peak) / took.at_s
        at_peak = _count_cpu(took, num_answered=len(peak), num_refused=0)
        load = RawLoad(kind.requests, port=self.server.port, probe=_HEALTH)
        num_overflows = read_overflows()
        account = self.accounts[name]
        load.run_open(self._factor * peak_per_s, FILL_S)
        account.num_early_overflows += read_overflows() - num_overflows
        num_before, before = len(load.answers), read_cpu_time(self.server.pid)
        load.run_open(self._factor * peak_per_s, FILL_S + self._seconds)
        counted, took = load.answers[num_before:], read_cpu_time(self.server.pid).since(before)
        load.drain(DRAIN_S)
        load.close()
        accepted = [answer for answer in counted if answer.is_ok and answer.number != PROBE]
        refused = [answer for answer in load.answers if answer.outcome == "429"]
        refused_s = [answer.latency_s for answer in refused] or [float("nan")]
        at_overload = _count_cpu(
            took,
            num_answered=len(accepted),
            num_refused=sum(not answer.is_ok for answer in counted),
            at_peak=at_peak,
        )
        self.cpu_rows.setdefault(f"{name}, at the peak", []).append(at_peak)
        self.cpu_rows.setdefault(f"{name}, at {self._factor:g}x", []).append(at_overload)
        account.num_overflows += read_overflows() - num_overflows
        account.add_load(load, kind.expected)
        return {
            "accepted": len(accepted) / took.at_s / peak_per_s,
            "refused_ms": 1000 * float(np.median(refused_s)),
            "refused_p99_ms": 1000 * float(np.percentile(refused_s, 99)),
            "health_p99_ms": 1000 * find_health_p99_s(load.answers),
            "accepted_s": float(np.median([answer.latency_s for answer in accepted])),
        }

    def _run_closed(self, requests: list[bytes], *, num_clients: int) -> list[Answer]:
        load = RawLoad(requests, port=self.server.port)
        answers = load.run_closed(num_clients, len(requests))
        load.close()
        if set(load.count_outcomes()) != {"200"}:
            raise RuntimeError(f"without overload, the server answered {load.count_outcomes()}")
        return answers

    def _make_requests(self, texts: list[str], per_request: int) -> list[bytes]:
        return make_requests(texts, per_request=per_request, port=self.server.port, encoding_format="base64")


def _sort(answers: Sequence[Answer]) -> list[Answer]:
    return sorted(answers, key=lambda answer: answer.number)


def _count_cpu(
    took: CpuTime, *, num_answered: int, num_refused: int, at_peak: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return shares of one core by thread, and CPU time per request in microseconds.

    at_peak: what an accepted request costs the event loop; the rest of its time is for refusals.
    """
    num_requests = num_answered + num_refused
    loop_us = 1e6 * took.loop_s
    shares = {
        "loop": took.loop_s / took.at_s,
        "other threads": took.other_s / took.at_s,
        "generator": took.generator_s / took.at_s,
        "loop waits": took.loop_wait_s / took.at_s,
        "others wait": took.other_wait_s / took.at_s,
        "requests/s": num_requests / took.at_s,
        "answered/s": num_answered / took.at_s,
        "generator us": 1e6 * took.generator_s / num_requests,
        "compute us": 1e6 * took.other_s / max(1, num_answered),
        "answer us": loop_us / max(1, num_answered),
        "refusal us": 0.0,
    }
    if at_peak is not None and num_refused:
        shares["answer us"] = at_peak["answer us"]
        shares["refusal us"] = (loop_us - num_answered * at_peak["answer us"]) / num_refused
    return shares


def print_account(bench: Bench) -> None:
    """Print who used the cores, and what became of all requests."""
    for name, medians in bench.summarize_cpu().items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in medians.items()))
    for name, account in bench.accounts.items():
        print(f"\n{name}: {account}")
        for message in account.list_broken():
            print(f"NOT KEPT: {message}")


def main() -> None:
    """Run the rounds and print the results; exit with 1 if a promise was not kept."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--factor", type=float, default=5, help="of the load, to the peak [5]")
    parser.add_argument("--only", choices=["passages", "queries"], default="", help="kind of requests")
    parser.add_argument("--no-warm-up", action="store_true", help="let the first round count")
    options = parser.parse_args()
    bench = Bench(options.seconds, options.factor, options.only)
    try:
        run_rounds(bench.rows, bench.measure, options.rounds, warms_up=not options.no_warm_up)
    finally:
        exit_code = bench.close()
    print(f"\n{describe_machine()}; {options.rounds} rounds; the server ended with {exit_code}\n")
    print_rows(bench.rows)
    print()
    print_account(bench)
    result = {
        "machine": describe_machine(),
        "ratios": summarize_rows(bench.rows),
        "cpu": bench.summarize_cpu(),
        "outcomes": {name: account.outcomes for name, account in bench.accounts.items()},
    }
    print("\n" + json.dumps(result))
    sys.exit(exit_code != 0 or any(account.list_broken() for account in bench.accounts.values()))


if __name__ == "__main__":
    main()
