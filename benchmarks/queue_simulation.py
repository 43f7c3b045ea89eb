"""Simulate servers that fill batches from queues, with service times that were measured.

Requests arrive at random (Poisson), their lengths are drawn from a list, and a free replica takes what waits,
up to its token budget, as `scheduling.BatchQueue` does.
Nothing else is simulated: no lanes, no limits, no network.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.capacity import ServiceTime

# One queue for all replicas (one server), or one for each (servers behind a proxy).
Balancing = Literal["one queue", "round robin", "least outstanding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Say what arrives: the rate, and the lengths from which each request draws."""

    tokens_per_s: float
    request_tokens: Sequence[int]
    num_requests: int = 20_000
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Hold what a simulation found, warm-up left out."""

    tokens_per_s: float
    busy_ratio: float
    batch_tokens: float
    median_s: float
    p99_s: float


class _Queue:
    """Hold what waits for some replicas, and what they compute."""

    def __init__(self, num_replicas: int) -> None:
        self.waiting: deque[tuple[float, int]] = deque()  # arrival, tokens
        self.num_idle = num_replicas
        self.outstanding = 0

    def take_batch(self, max_tokens: int) -> list[tuple[float, int]]:
        batch: list[tuple[float, int]] = []
        total = 0
        while self.waiting and (not batch or total + self.waiting[0][1] <= max_tokens):
            batch.append(self.waiting.popleft())
            total += batch[-1][1]
        return batch


def simulate(
    load: Load,
    service: ServiceTime,
    *,
    num_replicas: int,
    max_tokens: int,
    balancing: Balancing = "one queue",
) -> Outcome:
    """Run the requests through the queues."""
    arrivals, lengths = _draw_requests(load)
    is_shared = balancing == "one queue"
    queues = [_Queue(num_replicas if is_shared else 1) for _ in range(1 if is_shared else num_replicas)]
    completions: list[tuple[float, int, int, list[tuple[float, int]]]] = []  # end, order, queue, batch
    latencies: list[float] = []
    sizes: list[int] = []
    busy_s = now = 0.0

    def start_batches(at: int) -> None:
        nonlocal busy_s
        queue = queues[at]
        while queue.num_idle and (batch := queue.take_batch(max_tokens)):
            queue.num_idle -= 1
            sizes.append(sum(tokens for _, tokens in batch))
            seconds = service.of_batch(sizes[-1])
            busy_s += seconds
            heapq.heappush(completions, (now + seconds, len(sizes), at, batch))

    def complete_next() -> None:
        nonlocal now
        now, _, at, batch = heapq.heappop(completions)
        latencies.extend(now - arrival for arrival, _ in batch)
        queues[at].num_idle += 1
        queues[at].outstanding -= len(batch)
        start_batches(at)

    for number, (arrival, tokens) in enumerate(zip(arrivals, lengths, strict=True)):
        while completions and completions[0][0] <= arrival:
            complete_next()
        now = arrival
        at = _choose_queue(queues, number, balancing)
        queues[at].waiting.append((arrival, tokens))
        queues[at].outstanding += 1
        start_batches(at)
    while completions:
        complete_next()
    kept = np.asarray(latencies[len(latencies) // 10 :])
    return Outcome(
        tokens_per_s=float(sum(lengths) / now),
        busy_ratio=busy_s / now / num_replicas,
        batch_tokens=float(np.mean(sizes)),
        median_s=float(np.median(kept)),
        p99_s=float(np.quantile(kept, 0.99)),
    )


def _draw_requests(load: Load) -> tuple[list[float], list[int]]:
    generator = np.random.default_rng(load.seed)
    lengths = generator.choice(np.asarray(load.request_tokens), load.num_requests)
    requests_per_s = load.tokens_per_s / float(np.mean(load.request_tokens))
    arrivals = np.cumsum(generator.exponential(1 / requests_per_s, load.num_requests))
    return arrivals.tolist(), lengths.tolist()


def _choose_queue(queues: Sequence[_Queue], number: int, balancing: Balancing) -> int:
    if balancing == "least outstanding":
        return min(range(len(queues)), key=lambda at: queues[at].outstanding)
    return number % len(queues)
