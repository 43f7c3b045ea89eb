"""Parse Prometheus' text format, and compute rates and percentiles from two scrapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Labels = Mapping[str, str]
Filter = Callable[[Labels], bool]


class Sample(NamedTuple):
    """One value of a metric."""

    labels: Labels
    value: float


class Samples:
    """The samples of one scrape, by name; empty for a server that has just started."""

    def __init__(self, text: str = "") -> None:
        """Parse an exposition. Raises ValueError for anything else."""
        from prometheus_client.parser import text_string_to_metric_families

        self._by_name: dict[str, list[Sample]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._by_name.setdefault(sample.name, []).append(Sample(sample.labels, sample.value))

    def select(self, name: str, is_wanted: Filter) -> list[Sample]:
        """Return the samples of a name that pass the filter."""
        return [sample for sample in self._by_name.get(name, ()) if is_wanted(sample.labels)]

    def sum(self, name: str, is_wanted: Filter = lambda _: True) -> float | None:
        """Add up the samples of a name; None without any."""
        samples = self.select(name, is_wanted)
        return sum(sample.value for sample in samples) if samples else None


class Window:
    """Two scrapes of one server."""

    def __init__(self, before: Samples, after: Samples, seconds: float) -> None:
        self._before = before
        self._after = after
        self.seconds = seconds

    def growth(self, name: str, is_wanted: Filter = lambda _: True) -> float | None:
        """Return how much a counter has grown, also after a restart; None if it does not exist."""
        now = self._after.sum(name, is_wanted)
        if now is None:
            return None
        then = self._before.sum(name, is_wanted) or 0.0
        return now - then if now >= then else now

    def rate(self, name: str, is_wanted: Filter = lambda _: True) -> float | None:
        """Return the growth per second."""
        return divide(self.growth(name, is_wanted), self.seconds)

    def quantiles(
        self, name: str, fractions: Sequence[float], is_wanted: Filter = lambda _: True
    ) -> list[float | None]:
        """Estimate quantiles of a histogram as Prometheus' histogram_quantile does; None without values."""
        buckets: dict[float, float] = {}
        for sign, samples in ((1, self._after), (-1, self._before)):
            for labels, value in samples.select(f"{name}_bucket", is_wanted):
                bound = float(labels["le"])
                buckets[bound] = buckets.get(bound, 0) + sign * value
        if any(count < 0 for count in buckets.values()):  # the server was restarted
            return Window(Samples(), self._after, self.seconds).quantiles(name, fractions, is_wanted)
        return [_find_quantile(sorted(buckets.items()), fraction) for fraction in fractions]

    def latest(self, name: str) -> list[Sample]:
        """Return the samples of the second scrape."""
        return self._after.select(name, lambda _: True)


def divide(value: float | None, by: float | None) -> float | None:
    """Return the quotient, or None if it is undefined."""
    return value / by if value is not None and by else None


def _find_quantile(buckets: list[tuple[float, float]], fraction: float) -> float | None:
    total = buckets[-1][1] if buckets else 0
    if not total:
        return None
    rank = fraction * total
    lower, below = 0.0, 0.0
    for upper, count in buckets:
        if count >= rank:
            break
        lower, below = upper, count
    if math.isinf(upper):
        return lower
    return lower + (upper - lower) * ((rank - below) / (count - below) if count > below else 1)
