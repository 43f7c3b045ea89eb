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
    "infinity_busy_seconds": (
        "Seconds in which a forward pass was under way, over all replicas; its rate is the load.",
        lambda engine: engine.stats.busy_s,
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
