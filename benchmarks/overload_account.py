"""What became of the requests of an overload, and which promises were not kept."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson
import pybase64

from benchmarks.raw_load import PROBE, Answer, RawLoad

ALLOWED = {"200", "429", "503"}
TOLERANCE = 1e-5
MAX_HEALTH_P99_S = 0.5

Vectors: TypeAlias = npt.NDArray[np.float32]


@dataclass
class Account:
    """What became of the requests of all rounds.

    health_p99_s, slowest_health: of the worst round; the slowest with when it was asked.
    num_overflows, num_early_overflows: times that a backlog was full, and those while the queue filled.
    """

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    health: collections.Counter[str] = field(default_factory=collections.Counter)
    num_wrong: int = 0
    max_difference: float = 0.0
    max_connections: int = 0
    num_resent: int = 0
    health_p99_s: float = 0.0
    slowest_health: Answer = field(default=Answer(PROBE, 0.0, 0.0, ""))
    num_overflows: int = 0
    num_early_overflows: int = 0

    def __str__(self) -> str:
        slowest = self.slowest_health
        return (
            f"{dict(self.outcomes)}; health {dict(self.health)}, the slowest {slowest.latency_s:.2f} s,"
            f" asked after {slowest.due_s:.1f} s; at most {self.max_connections} connections,"
            f" {self.num_resent} requests resent; {self.num_overflows} overflows of a backlog,"
            f" {self.num_early_overflows} of them while the queue filled; vectors differ by at most"
            f" {self.max_difference:.1e} from those computed alone"
        )

    def add_load(self, load: RawLoad, expected: Vectors) -> None:
        """Add the requests of one round.

        expected: (requests, texts per request, D) float32, each vector computed alone.
        """
        self.num_resent += load.num_resent
        self.max_connections = max(self.max_connections, load.max_connections)
        self.add_answers(load.answers, expected)

    def add_answers(self, answers: Sequence[Answer], expected: Vectors) -> None:
        """Count outcomes, compare vectors, and note the latency of /health."""
        self.health_p99_s = max(self.health_p99_s, find_health_p99_s(answers))
        for answer in answers:
            if answer.number == PROBE:
                self.health[answer.outcome] += 1
                self.slowest_health = max(self.slowest_health, answer, key=lambda each: each.latency_s)
                continue
            self.outcomes[answer.outcome] += 1
            if answer.is_ok:
                difference = float(np.abs(read_vectors(answer) - expected[answer.number]).max())
                self.num_wrong += not difference <= TOLERANCE  # nor if it is not a number
                self.max_difference = max(self.max_difference, difference)

    def list_broken(self) -> list[str]:
        """Name the promises that were not kept."""
        unexpected = {name: number for name, number in self.outcomes.items() if name not in ALLOWED}
        checks = {
            f"unexpected outcomes: {unexpected}": bool(unexpected),
            f"health: {dict(self.health)}": set(self.health) != {"200"},
            f"99th percentile of /health: {self.health_p99_s:.2f} s": self.health_p99_s >= MAX_HEALTH_P99_S,
            f"a backlog was full {self.num_overflows} times": self.num_overflows > 0,
            f"{self.num_wrong} wrong vectors": self.num_wrong > 0,
        }
        return [message for message, is_broken in checks.items() if is_broken]


def find_health_p99_s(answers: Sequence[Answer]) -> float:
    """Return the 99th percentile of the latency of /health."""
    return float(np.percentile([each.latency_s for each in answers if each.number == PROBE], 99))


def read_vectors(answer: Answer) -> Vectors:
    """Return the vectors of a response, (texts, D) float32."""
    body: dict[str, Any] = orjson.loads(answer.response.partition(b"\r\n\r\n")[2])
    raw = b"".join(pybase64.b64decode(entry["embedding"]) for entry in body["data"])
    return np.frombuffer(raw, dtype=np.float32).reshape(len(body["data"]), -1)


def read_overflows() -> int:
    """Return how often a backlog of a listening socket of this machine was full."""
    lines = [line.split() for line in Path("/proc/net/netstat").read_text().splitlines()]
    counters = dict(zip(lines[0], lines[1], strict=True))
    return int(counters["ListenOverflows"])
