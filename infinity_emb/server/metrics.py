"""Prometheus metrics of each model's queue, worker threads and cache, read when Prometheus scrapes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from infinity_emb._version import __version__
from infinity_emb.engine.status import EngineStatus
from infinity_emb.scheduling.histogram import HistogramSnapshot
from infinity_emb.server.served_models import ServedModels


class ModelMetric(NamedTuple):
    """One metric of a model; Prometheus adds `_total` to the name of a counter."""

    name: str
    help: str
    read: Callable[[EngineStatus], float]


GAUGES = (
    ModelMetric(
        "infinity_queue_items",
        "Inputs in the queue. Constantly above 0: the device is the bottleneck.",
        lambda status: status.num_waiting_items,
    ),
    ModelMetric("infinity_queue_tokens", "Tokens in the queue.", lambda status: status.num_waiting_tokens),
    ModelMetric(
        "infinity_pending_requests",
        "Requests accepted and not yet completed.",
        lambda status: status.num_requests,
    ),
    ModelMetric(
        "infinity_model_loaded",
        "1 if the model is in memory, 0 if it is unloaded or being loaded.",
        lambda status: status.is_loaded,
    ),
    ModelMetric(
        "infinity_replicas",
        "Replicas of the model that can compute; 0 if it is unloaded.",
        lambda status: status.num_replicas,
    ),
    ModelMetric(
        "infinity_device_memory_bytes",
        "Memory that this process holds on the model's devices; on a CPU, all that the process holds.",
        lambda status: status.device_memory.used_bytes,
    ),
    ModelMetric(
        "infinity_device_memory_limit_bytes",
        "Memory of the model's devices; on a CPU, of the machine or the container. 0 if unknown.",
        lambda status: status.device_memory.limit_bytes,
    ),
    ModelMetric(
        "infinity_max_batch_tokens",
        "Token budget of a batch, as given or as measured at start.",
        lambda status: status.max_batch_tokens,
    ),
    ModelMetric(
        "infinity_cache_memory_bytes", "Size of the memory cache.", lambda status: status.cache.memory_bytes
    ),
    ModelMetric(
        "infinity_cache_disk_bytes",
        "Size of the disk cache of all models, at this model's last write.",
        lambda status: status.cache.disk_bytes,
    ),
)
COUNTERS = (
    ModelMetric("infinity_batches", "Successful batches.", lambda status: status.worker.num_batches),
    ModelMetric("infinity_items", "Inputs computed.", lambda status: status.worker.num_items),
    ModelMetric("infinity_tokens", "Tokens computed.", lambda status: status.worker.num_tokens),
    ModelMetric(
        "infinity_failed_items",
        "Inputs that failed in the backend; any increase deserves a look at the log.",
        lambda status: status.worker.num_failed_items,
    ),
    ModelMetric(
        "infinity_split_batches",
        "Batches that failed and were retried in halves.",
        lambda status: status.worker.num_split_batches,
    ),
    ModelMetric(
        "infinity_refused_requests",
        "Requests rejected with 429 because the queue was full.",
        lambda status: status.num_refused_requests,
    ),
    ModelMetric(
        "infinity_requests_timed_out",
        "Requests that ended with 504 because they timed out.",
        lambda status: status.num_timed_out_requests,
    ),
    ModelMetric(
        "infinity_requests_disconnected",
        "Requests whose clients disconnected.",
        lambda status: status.num_cancelled_requests,
    ),
    ModelMetric(
        "infinity_items_skipped",
        "Queued inputs that were skipped because their request had ended.",
        lambda status: status.worker.num_skipped_items,
    ),
    ModelMetric(
        "infinity_retried_items",
        "Inputs computed again, after a crash of a worker thread or in float32.",
        lambda status: status.worker.num_retried_items,
    ),
    ModelMetric(
        "infinity_out_of_memory",
        "Batches that did not fit into the device's memory and were retried in smaller ones.",
        lambda status: status.worker.num_out_of_memory,
    ),
    ModelMetric(
        "infinity_worker_restarts",
        "Worker thread restarts; any increase deserves a look at the log.",
        lambda status: status.worker.num_restarts,
    ),
    ModelMetric(
        "infinity_compute_seconds",
        "Seconds spent on forward passes, over all replicas; rate / infinity_replicas is the utilization.",
        lambda status: status.worker.compute_s,
    ),
    ModelMetric(
        "infinity_cache_memory_hits", "Memory cache hits.", lambda status: status.cache.num_memory_hits
    ),
    ModelMetric("infinity_cache_disk_hits", "Disk cache hits.", lambda status: status.cache.num_disk_hits),
    ModelMetric(
        "infinity_cache_shared",
        "Inputs that another request was computing at that moment.",
        lambda status: status.cache.num_shared,
    ),
    ModelMetric("infinity_cache_misses", "Cache misses.", lambda status: status.cache.num_misses),
    ModelMetric(
        "infinity_cache_dropped",
        "Corrupt entries and files of the disk cache; an increase deserves a look at the disk.",
        lambda status: status.cache.num_dropped,
    ),
    ModelMetric(
        "infinity_cache_write_failures",
        "Entries not written to disk because it was full, locked or too slow.",
        lambda status: status.cache.num_unwritten,
    ),
)
# Name, help, and the name in `StageHistograms`.
HISTOGRAMS = (
    (
        "infinity_encode_seconds",
        "Time to tokenize or preprocess up to 64 inputs of a request, waiting for a thread included.",
        "encode_s",
    ),
    (
        "infinity_queue_seconds",
        "Time of each input in the queue, until the batch that completed it was launched.",
        "queue_s",
    ),
    ("infinity_batch_seconds", "Time of each successful batch on its device.", "batch_s"),
    ("infinity_forward_seconds", "Of that, the time until the device had computed.", "forward_s"),
    ("infinity_batch_tokens", "Tokens of each successful batch.", "batch_tokens"),
    ("infinity_batch_items", "Inputs of each successful batch.", "batch_items"),
)
# Old name of a counter → its name; both are exposed for one release.
DEPRECATED_COUNTERS = {
    "infinity_late_requests": "infinity_requests_timed_out",
    "infinity_cancelled_requests": "infinity_requests_disconnected",
    "infinity_dropped_items": "infinity_items_skipped",
    "infinity_restarts": "infinity_worker_restarts",
    "infinity_busy_seconds": "infinity_compute_seconds",
    "infinity_cache_unwritten": "infinity_cache_write_failures",
}


class ModelCollector(Collector):
    """Collect one sample per metric and model, labelled with the served name."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; they have no samples before the models are loaded."""
        statuses = [engine.status() for engine in self._models.array] if self._models.is_loaded else []
        for metric in GAUGES:
            gauge = GaugeMetricFamily(metric.name, metric.help, labels=["model"])
            for status in statuses:
                gauge.add_metric([status.name], metric.read(status))
            yield gauge
        for metric in (*COUNTERS, *_list_deprecated()):
            counter = CounterMetricFamily(metric.name, metric.help, labels=["model"])
            for status in statuses:
                counter.add_metric([status.name], metric.read(status))
            yield counter
        for name, text, stage in HISTOGRAMS:
            by_model = [([status.name], status.histograms[stage]) for status in statuses]
            yield describe_histograms(name, text, ["model"], by_model)
        yield _describe_waits(statuses)
        yield _describe_models(statuses)


def describe_histograms(
    name: str, text: str, labels: Sequence[str], histograms: Iterable[tuple[Sequence[str], HistogramSnapshot]]
) -> Metric:
    """Return one metric of several histograms, each with the values of its labels."""
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, histogram in histograms:
        family.add_metric(values, _list_buckets(histogram), histogram.total)
    return family


def _list_buckets(histogram: HistogramSnapshot) -> list[tuple[str, float]]:
    """Return the upper bound of each bucket with the number of values up to it, as Prometheus counts them."""
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    return list(zip(bounds, itertools.accumulate(histogram.counts), strict=True))


def _describe_waits(statuses: Sequence[EngineStatus]) -> Metric:
    waits = GaugeMetricFamily(
        "infinity_estimated_wait_seconds",
        "Expected wait of a new input, by lane; the signal to scale on. 0 while the speed is unknown.",
        labels=["model", "lane"],
    )
    for status in statuses:
        for lane, seconds in status.estimated_wait_s.items():
            waits.add_metric([status.name, lane], seconds)
    return waits


def _describe_models(statuses: Sequence[EngineStatus]) -> Metric:
    models = InfoMetricFamily("infinity_model", "What serves each model; always 1.", labels=["model"])
    for status in statuses:
        info = status.info
        models.add_metric(
            [status.name],
            {
                "version": __version__,
                "kind": info.kind,
                "engine": info.engine,
                "device": info.device,
                "dtype": info.dtype,
            },
        )
    return models


def _list_deprecated() -> Sequence[ModelMetric]:
    by_name = {metric.name: metric for metric in COUNTERS}
    return [
        ModelMetric(old_name, f"Deprecated, use {name}_total.", by_name[name].read)
        for old_name, name in DEPRECATED_COUNTERS.items()
    ]
