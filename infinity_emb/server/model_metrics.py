"""What each model's queue and device have done, read when Prometheus asks. Costs a request nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infinity_emb.engine import AsyncEmbeddingEngine
from infinity_emb.server.served_engines import ServedEngines

Reading = Callable[[AsyncEmbeddingEngine], float]

GAUGES: dict[str, tuple[str, Reading]] = {
    "infinity_queue_items": (
        "Texts that wait for the device. Steadily above 0: the device is the bottleneck.",
        lambda engine: engine.overload_status().queue_absolute,
    ),
    "infinity_queue_tokens": (
        "Tokens that wait for the device.",
        lambda engine: engine.num_waiting_tokens,
    ),
    "infinity_pending_requests": (
        "Requests that were accepted and are not answered yet.",
        lambda engine: engine.overload_status().results_absolute,
    ),
    "infinity_model_loaded": (
        "1 while the model is in memory, 0 while it is given up or being loaded.",
        lambda engine: engine.is_loaded,
    ),
    "infinity_cache_memory_bytes": (
        "What the cache in memory takes.",
        lambda engine: engine.cache_stats.memory_bytes,
    ),
    "infinity_cache_disk_bytes": (
        "What the cache on disk takes for all models, when this one last wrote to it.",
        lambda engine: engine.cache_stats.disk_bytes,
    ),
}
# Prometheus adds `_total` to a counter's name.
COUNTERS: dict[str, tuple[str, Reading]] = {
    "infinity_batches": ("Forward passes that succeeded.", lambda engine: engine.stats.num_batches),
    "infinity_items": ("Texts that were embedded.", lambda engine: engine.stats.num_items),
    "infinity_tokens": ("Tokens that were embedded.", lambda engine: engine.stats.num_tokens),
    "infinity_failed_items": (
        "Texts that ended in an error on the device; any increase is worth a look into the log.",
        lambda engine: engine.stats.num_failed_items,
    ),
    "infinity_split_batches": (
        "Forward passes that failed and were tried again in halves.",
        lambda engine: engine.stats.num_split_batches,
    ),
    "infinity_refused_requests": (
        "Requests that were answered with 429, as there was no room for them.",
        lambda engine: engine.num_refused_requests,
    ),
    "infinity_late_requests": (
        "Requests that were answered with 504, as their time was over.",
        lambda engine: engine.num_late_requests,
    ),
    "infinity_cancelled_requests": (
        "Requests whose clients hung up.",
        lambda engine: engine.num_cancelled_requests,
    ),
    "infinity_dropped_items": (
        "Texts that waited and were not computed, as their request had ended.",
        lambda engine: engine.stats.num_dropped_items,
    ),
    "infinity_retried_items": (
        "Texts that were computed once more: after a death of the device thread, or in float32.",
        lambda engine: engine.stats.num_retried_items,
    ),
    "infinity_out_of_memory": (
        "Forward passes that did not fit into the device's memory; smaller ones took their place.",
        lambda engine: engine.stats.num_out_of_memory,
    ),
    "infinity_restarts": (
        "Deaths of a device thread that came back; any increase is worth a look into the log.",
        lambda engine: engine.stats.num_restarts,
    ),
    "infinity_busy_seconds": (
        "Seconds in which a forward pass was under way, over all replicas; its rate is the load.",
        lambda engine: engine.stats.busy_s,
    ),
    "infinity_cache_memory_hits": (
        "Texts that were answered from memory.",
        lambda engine: engine.cache_stats.num_memory_hits,
    ),
    "infinity_cache_disk_hits": (
        "Texts that were answered from disk.",
        lambda engine: engine.cache_stats.num_disk_hits,
    ),
    "infinity_cache_shared": (
        "Texts that another request was computing at that moment.",
        lambda engine: engine.cache_stats.num_shared,
    ),
    "infinity_cache_misses": (
        "Texts that were computed although there is a cache.",
        lambda engine: engine.cache_stats.num_misses,
    ),
    "infinity_cache_dropped": (
        "Corrupt entries of the cache on disk, and corrupt files; an increase is worth a look at the disk.",
        lambda engine: engine.cache_stats.num_dropped,
    ),
    "infinity_cache_unwritten": (
        "Answers that were not kept on disk, which was full, locked or too slow.",
        lambda engine: engine.cache_stats.num_unwritten,
    ),
}


class ModelCollector(Collector):
    """One sample per metric and engine, labelled with the served name."""

    def __init__(self, served: ServedEngines) -> None:
        self._served = served

    def collect(self) -> Iterator[Metric]:
        """The metrics; without samples before the engines are loaded."""
        engines = list(self._served.array) if self._served.is_loaded else []
        for name, (text, read) in GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=["model"])
            for engine in engines:
                gauge.add_metric([engine.engine_args.served_model_name], read(engine))
            yield gauge
        for name, (text, read) in COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=["model"])
            for engine in engines:
                counter.add_metric([engine.engine_args.served_model_name], read(engine))
            yield counter
