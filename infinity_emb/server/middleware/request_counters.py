"""Count the requests of each model by route, and those that failed by the kind of error.

Labels are names that the server knows, so a client cannot create time series.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from infinity_emb.server.responses.errors import ERROR_KINDS, MODELLESS_ERROR_KINDS
from infinity_emb.server.served_models import ServedModels

# Label of requests that fail before their model is known; Prometheus treats it as missing.
NO_MODEL = ""


class RequestCounters(Collector):
    """The counters of one app, complete from the first scrape: they start at 0.

    routes: of the requests that reach a model.
    """

    def __init__(self, models: ServedModels, routes: Iterable[str]) -> None:
        self._models = models
        self._routes = tuple(routes)
        self._requests: Counter[tuple[str, str]] = Counter()
        self._errors: Counter[tuple[str, str]] = Counter()

    def count(self, *, model: str, route: str, error_kind: str | None) -> None:
        """Count one finished request.

        error_kind: None for a successful one.
        """
        if model != NO_MODEL:
            self._requests[model, route] += 1
        if error_kind is not None:
            self._errors[model, error_kind] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield both metrics."""
        array = self._models.array if self._models.is_loaded else ()
        names = [engine.engine_args.served_model_name for engine in array]
        requests = CounterMetricFamily(
            "infinity_requests", "Requests of each model by route.", labels=["model", "route"]
        )
        expected = [(name, route) for name in names for route in self._routes]
        for labels in dict.fromkeys([*expected, *self._requests]):
            requests.add_metric(labels, self._requests[labels])
        yield requests
        errors = CounterMetricFamily(
            "infinity_request_errors",
            "Failed requests by kind of error; without a model if they failed before it was known.",
            labels=["model", "kind"],
        )
        possible = [(name, kind) for name in names for kind in ERROR_KINDS]
        modelless = [(NO_MODEL, kind) for kind in MODELLESS_ERROR_KINDS]
        for labels in dict.fromkeys([*modelless, *possible, *self._errors]):
            errors.add_metric(labels, self._errors[labels])
        yield errors
