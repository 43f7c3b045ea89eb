"""Count and time HTTP requests.

Names and labels are those of prometheus-fastapi-instrumentator, which existing dashboards use; its
buckets are among these.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infinity_emb.scheduling.histogram import Histogram
from infinity_emb.server.metrics import describe_histograms
from infinity_emb.server.middleware.request_counters import RequestCounters
from infinity_emb.server.requests.call import get_model
from infinity_emb.server.requests.headers import read_content_length
from infinity_emb.server.responses.errors import DISCONNECTED

FEW_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
MANY_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75),
    *(1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 7.5, 10, 30, 60),
)
KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# nginx's status for a client that disconnected before the response.
STATUS_DISCONNECTED = 499
EXPECTED_STATUSES = ("2xx", "4xx", "5xx")


class HTTPMetrics(Collector):
    """The HTTP metrics of one app.

    They are counted here and become Prometheus metrics when they are read: `prometheus_client`'s own counters
    take a lock for each of the nine numbers of a request.

    routes: method and path of each; their counters exist, at 0, before the first request.
    """

    def __init__(self, counters: RequestCounters, routes: Iterable[tuple[str, str]]) -> None:
        self._counters = counters
        self._requests = Counter(
            {(path, method, status): 0 for method, path in routes for status in EXPECTED_STATUSES}
        )
        self._seconds: defaultdict[tuple[str, str], Histogram] = defaultdict(lambda: Histogram(FEW_BUCKETS))
        self._seconds_of_all = Histogram(MANY_BUCKETS)
        self._request_bytes: defaultdict[str, Histogram] = defaultdict(_make_summary)
        self._response_bytes: defaultdict[str, Histogram] = defaultdict(_make_summary)

    def observe(
        self, scope: Scope, *, status: int, seconds: float, num_bytes_in: int, num_bytes_out: int
    ) -> None:
        """Count one finished request."""
        handler: str = getattr(scope.get("route"), "path", "none")
        self._counters.count(
            model=get_model(scope), route=handler, error_kind=_find_error_kind(scope, status)
        )
        method = scope["method"]
        method = method if method in KNOWN_METHODS else "other"
        self._requests[handler, method, f"{status // 100}xx"] += 1
        self._seconds[handler, method].observe(seconds)
        self._seconds_of_all.observe(seconds)
        self._request_bytes[handler].observe(num_bytes_in)
        self._response_bytes[handler].observe(num_bytes_out)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; any thread may call it.

        Copies of dictionaries, because other threads go on counting. A list of items would be no copy of one
        moment: it allocates tuples, and the garbage collection that this may start lets other threads run.
        """
        text = "Requests by route template, method and status group."
        requests = CounterMetricFamily("http_requests", text, labels=["handler", "method", "status"])
        for labels, number in dict(self._requests).items():
            requests.add_metric(labels, number)
        yield requests
        name, text = "http_request_duration_seconds", "Duration of requests in seconds by route."
        by_route = [(labels, each.snapshot()) for labels, each in dict(self._seconds).items()]
        yield describe_histograms(name, text, ["handler", "method"], by_route)
        name = "http_request_duration_highr_seconds"
        text = "Duration of requests in seconds over all routes, in many buckets."
        yield describe_histograms(name, text, [], [((), self._seconds_of_all.snapshot())])
        name, text = "http_request_size_bytes", "Declared size of request bodies in bytes."
        yield _describe_summaries(name, text, dict(self._request_bytes).items())
        name, text = "http_response_size_bytes", "Size of response bodies in bytes."
        yield _describe_summaries(name, text, dict(self._response_bytes).items())
        yield from self._counters.collect()


def _make_summary() -> Histogram:
    return Histogram(())  # one bucket: the number and the sum of all values


def _find_error_kind(scope: Scope, status: int) -> str | None:
    """Return the kind of error that a response was for; None for a successful one."""
    if status == STATUS_DISCONNECTED:
        return DISCONNECTED
    kind: str | None = scope.get("state", {}).get("error_kind")
    # A status without a kind comes from a route that users have added.
    return kind or (f"http_{status}" if status >= 400 else None)


def _describe_summaries(name: str, text: str, summaries: Iterable[tuple[str, Histogram]]) -> Metric:
    family = SummaryMetricFamily(name, text, labels=["handler"])
    for handler, summary in summaries:
        counts = summary.snapshot()
        family.add_metric([handler], counts.counts[0], counts.total)
    return family


class HTTPMetricsMiddleware:
    """Measure each request for `HTTPMetrics`."""

    def __init__(self, app: ASGIApp, *, metrics: HTTPMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, num_bytes_out = STATUS_DISCONNECTED, 0

        async def send_counting(message: Message) -> None:
            nonlocal status, num_bytes_out
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                num_bytes_out += len(message.get("body", b""))
            await send(message)

        started_s = time.perf_counter()
        try:
            await self._app(scope, receive, send_counting)
        finally:
            self._metrics.observe(
                scope,
                status=status,
                seconds=time.perf_counter() - started_s,
                num_bytes_in=read_content_length(scope),
                num_bytes_out=num_bytes_out,
            )
