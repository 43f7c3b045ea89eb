"""Count durations and sizes in buckets, as Prometheus' histograms do."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKENS = tuple(2.0**power for power in range(5, 17))
ITEMS = tuple(2.0**power for power in range(11))


class HistogramSnapshot(NamedTuple):
    """A histogram at one moment.

    counts: number of values in each bucket, one more than there are bounds.
    """

    bounds: Sequence[float]
    counts: Sequence[int]
    total: float


class Histogram:
    """The number of values per bucket, and their sum. Not thread-safe.

    bounds: the largest value of each bucket, ascending; one more bucket takes the larger ones.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float, number: int = 1) -> None:
        """Count a value that occurred `number` times."""
        self._counts[bisect.bisect_left(self._bounds, value)] += number
        self._total += value * number

    def snapshot(self) -> HistogramSnapshot:
        """Return the present counts."""
        return HistogramSnapshot(self._bounds, tuple(self._counts), self._total)


def _seconds() -> Histogram:
    return Histogram(SECONDS)


@dataclass(frozen=True, slots=True)
class StageHistograms:
    """The durations of the stages of requests, and the sizes of batches.

    encode_s: of each chunk of a request's inputs, waiting for a thread included.
    queue_s: of each input, from the queue to the launch of the batch that completed it.
    batch_s: of each successful batch, from launch to stored outputs.
    forward_s: the part of it until the device had finished.
    batch_tokens, batch_items: of each successful batch.
    """

    encode_s: Histogram = field(default_factory=_seconds)
    queue_s: Histogram = field(default_factory=_seconds)
    batch_s: Histogram = field(default_factory=_seconds)
    forward_s: Histogram = field(default_factory=_seconds)
    batch_tokens: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    batch_items: Histogram = field(default_factory=lambda: Histogram(ITEMS))

    def snapshot(self) -> Mapping[str, HistogramSnapshot]:
        """Return each histogram's counts by its name."""
        return {each.name: getattr(self, each.name).snapshot() for each in fields(self)}
