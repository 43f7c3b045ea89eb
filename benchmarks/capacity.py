"""Plan capacity: throughput, replicas, cost and network from a few measured figures.

docs/scaling.md explains the formulas; `benchmarks.queue_simulation` checks them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SECONDS_PER_HOUR = 3600
BILLION = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTime:
    """Hold the seconds of a batch on one replica: a fixed part, and one for each token."""

    batch_s: float
    token_s: float

    def of_batch(self, num_tokens: float) -> float:
        return self.batch_s + self.token_s * num_tokens

    def tokens_per_s(self, batch_tokens: float) -> float:
        """Return the rate of one replica whose batches all have this many tokens."""
        return batch_tokens / self.of_batch(batch_tokens)


def fit_service_time(num_tokens: Sequence[float], seconds: Sequence[float]) -> ServiceTime:
    """Fit measured batches by least squares of relative errors, so that small batches count as much."""
    tokens, measured = np.asarray(num_tokens, float), np.asarray(seconds, float)
    weighted = np.stack([1 / measured, tokens / measured], axis=1)  # (batches, 2)
    (batch_s, token_s), *_ = np.linalg.lstsq(weighted, np.ones(len(measured)), rcond=None)
    return ServiceTime(batch_s=max(float(batch_s), 0.0), token_s=float(token_s))


def count_replicas(
    tokens_per_s: float, service: ServiceTime, *, batch_tokens: float, busy_ratio: float = 0.7
) -> int:
    """Return the replicas that serve this load while each computes at most `busy_ratio` of the time."""
    return max(1, math.ceil(tokens_per_s / (service.tokens_per_s(batch_tokens) * busy_ratio)))


def estimate_batch_tokens(
    tokens_per_s: float, service: ServiceTime, *, num_replicas: int, request_tokens: float, max_tokens: float
) -> float:
    """Return the size to which batches grow: what arrives while the batches before them are computed."""
    left = num_replicas - tokens_per_s * service.token_s
    grown = tokens_per_s * service.batch_s / left if left > 0 else math.inf
    return min(max(grown, request_tokens), max_tokens)


def estimate_busy_ratio(
    tokens_per_s: float, service: ServiceTime, *, num_replicas: int, request_tokens: float
) -> float:
    """Return an upper bound of the share of time that replicas compute: as if no requests shared a batch."""
    alone = tokens_per_s / request_tokens * service.of_batch(request_tokens) / num_replicas
    return min(alone, 1.0)


def cost_per_billion_tokens(price_per_hour: float, tokens_per_s: float, busy_ratio: float = 1.0) -> float:
    """Return the price of a billion tokens; `busy_ratio` of the paid time is computed."""
    return price_per_hour / SECONDS_PER_HOUR / (tokens_per_s * busy_ratio) * BILLION


def count_front_ends(
    tokens_per_s: float, *, request_tokens: float, request_cpu_s: float, busy_ratio: float = 0.7
) -> int:
    """Return the processes that parse, tokenize and respond fast enough for this many tokens."""
    return max(1, math.ceil(tokens_per_s / request_tokens * request_cpu_s / busy_ratio))


def network_bits_per_s(tokens_per_s: float, *, request_tokens: float, request_bytes: float) -> float:
    """Return the traffic in both directions together."""
    return tokens_per_s / request_tokens * request_bytes * 8
