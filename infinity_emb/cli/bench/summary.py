"""Summarize the results of one level of load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infinity_emb.cli.bench.load import Result

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One level of load: a number of clients, or arrivals per second."""

    num_clients: int | None = None
    per_s: float | None = None

    @property
    def value(self) -> float:
        """The number, for an axis."""
        return self.per_s if self.per_s is not None else float(self.num_clients or 0)

    def __str__(self) -> str:
        return f"{self.value:g}{'/s' if self.per_s is not None else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The results of one server at one level.

    latency_ms: percentile → milliseconds from when a request was due to its response; of successes.
    mean_ms: mean latency. In a closed loop, the rate times the mean is the number of waiting clients.
    late_ms: 99th percentile of how late requests were sent, caused by the load generator or by opening
        connections.
    """

    level: Level
    num_ok: int
    seconds: float
    requests_per_s: float
    inputs_per_s: float
    tokens_per_s: float | None
    latency_ms: Mapping[int, float | None]
    mean_ms: float | None
    late_ms: float
    errors: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the values of a JSON object."""
        return {
            "concurrency": self.level.num_clients,
            "rate": self.level.per_s,
            "requests": self.num_ok,
            "seconds": self.seconds,
            "requests_per_s": self.requests_per_s,
            "inputs_per_s": self.inputs_per_s,
            "tokens_per_s": self.tokens_per_s,
            "mean_ms": self.mean_ms,
            **{f"p{percentile}_ms": value for percentile, value in self.latency_ms.items()},
            "late_p99_ms": self.late_ms,
            "errors": dict(self.errors),
        }


def summarize(results: Sequence[Result], level: Level, *, num_items: int, seconds: float | None) -> Summary:
    """Summarize the results of a load.

    seconds: how long requests were sent; responses after that count in latencies, not in rates. None for a
        number of requests, whose time ends with the last response.
    """
    succeeded = [result for result in results if result.is_ok]
    end_s = seconds or max((result.received_s for result in results), default=0.0)
    in_time = [result for result in succeeded if result.received_s <= end_s]
    counts = [result.num_tokens for result in in_time if result.num_tokens is not None]
    per_s = len(in_time) / end_s if end_s else 0.0
    latencies_ms = [1000 * result.latency_s for result in succeeded]
    late_ms = [1000 * (result.sent_s - result.due_s) for result in results]
    return Summary(
        level=level,
        num_ok=len(succeeded),
        seconds=end_s,
        requests_per_s=per_s,
        inputs_per_s=per_s * num_items,
        tokens_per_s=sum(counts) / end_s if counts and end_s else None,
        latency_ms={
            percentile: float(np.percentile(latencies_ms, percentile)) if latencies_ms else None
            for percentile in PERCENTILES
        },
        mean_ms=float(np.mean(latencies_ms)) if latencies_ms else None,
        late_ms=float(np.percentile(late_ms, 99)) if late_ms else 0.0,
        errors=Counter(result.outcome for result in results if not result.is_ok),
    )
