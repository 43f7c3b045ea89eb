"""Sum the metrics of several processes.

A report has `models`, the counters of each model's gate, and `metrics`, the samples of a registry as JSON
values: a list of families, each with its name, help, type and samples.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from infinity_emb.cli.front_ends.counters import add_counters, keep_counters
from infinity_emb.cli.front_ends.frames import Header
from infinity_emb.server.metrics import ModelCollector

# Samples of which the smallest or largest is kept; all others are summed.
_SMALLEST = ("process_start_time_seconds", "process_max_fds")
_LARGEST = ("_info", "process_virtual_memory_max_bytes")
_TOTALS = frozenset({"counter", "histogram", "summary"})


class SummingRegistry(CollectorRegistry):
    """A registry that adds the reports of other processes to the metrics of its own process.

    Metrics of `ModelCollector` are not added: the engine process has the state of the whole server.
    """

    def __init__(self, fetch_reports: Callable[[], Sequence[Header]]) -> None:
        super().__init__()
        self._fetch_reports = fetch_reports
        self._own: list[Collector] = []
        self._whole: list[Collector] = []

    def register(self, collector: Collector) -> None:
        super().register(collector)
        (self._whole if isinstance(collector, ModelCollector) else self._own).append(collector)

    def collect(self) -> Iterator[Metric]:
        """Yield the sums."""
        reports = [
            pack_metrics(self.collect_own()),
            *(each.get("metrics", []) for each in self._fetch_reports()),
        ]
        yield from unpack_metrics(merge_metrics(reports))
        for collector in self._whole:
            yield from collector.collect()

    def collect_own(self) -> Iterator[Metric]:
        """Yield the metrics of this process."""
        for collector in self._own:
            yield from collector.collect()


def pack_metrics(metrics: Iterable[Metric]) -> list[Header]:
    """Return metrics as JSON values."""
    return [
        {
            "name": metric.name,
            "help": metric.documentation,
            "type": metric.type,
            "samples": [(sample.name, sample.labels, sample.value) for sample in metric.samples],
        }
        for metric in metrics
    ]


def unpack_metrics(families: Iterable[Header]) -> Iterator[Metric]:
    """Yield the metrics again."""
    for family in families:
        metric = Metric(family["name"], family["help"], family["type"])
        for name, labels, value in family["samples"]:
            metric.add_sample(name, labels, value)
        yield metric


def merge_metrics(reports: Iterable[Sequence[Header]]) -> list[Header]:
    """Return the sums of samples of the same name and labels."""
    families: dict[str, Header] = {}
    samples: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for family in (family for report in reports for family in report):
        name = family["name"]
        families.setdefault(name, family)
        sums = samples.setdefault(name, {})
        for sample, labels, value in family["samples"]:
            key = sample, tuple(sorted(labels.items()))
            sums[key] = _choose(sample)(sums[key], value) if key in sums else value
    return [
        {
            **family,
            "samples": [(sample, dict(labels), value) for (sample, labels), value in samples[name].items()],
        }
        for name, family in families.items()
    ]


def merge_reports(reports: Iterable[Header]) -> Header:
    """Return one report with the sums of all."""
    given = [report for report in reports if report]
    models: dict[str, Header] = {}
    for name, counters in ((name, each) for report in given for name, each in report["models"].items()):
        models[name] = add_counters(models[name], counters) if name in models else counters
    return (
        {"models": models, "metrics": merge_metrics(report["metrics"] for report in given)} if given else {}
    )


def keep_totals(report: Header) -> Header:
    """Return the report of a process that has ended: its totals, without its gauges."""
    if not report:
        return {}
    return {
        "models": {name: keep_counters(counters) for name, counters in report["models"].items()},
        "metrics": [family for family in report["metrics"] if family["type"] in _TOTALS],
    }


def _choose(sample: str) -> Callable[[float, float], float]:
    if sample.endswith(_SMALLEST):
        return min
    return max if sample.endswith(_LARGEST) else operator.add
