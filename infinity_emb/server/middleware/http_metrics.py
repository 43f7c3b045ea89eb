"""Count and time HTTP requests.

Names and labels are those of prometheus-fastapi-instrumentator, which existing dashboards use; its
buckets are among these.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infinity_emb.server.middleware.request_counters import RequestCounters
from infinity_emb.server.requests.body import read_content_length
from infinity_emb.server.requests.call import get_model
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


class HTTPMetrics:
    """The HTTP metrics of one app.

    routes: method and path of each; their counters exist, at 0, before the first request.
    """

    def __init__(
        self, registry: CollectorRegistry, counters: RequestCounters, routes: Iterable[tuple[str, str]]
    ) -> None:
        self._requests = Counter(
            "http_requests",
            "Requests by route template, method and status group.",
            ["handler", "method", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "http_request_duration_seconds",
            "Duration of requests in seconds by route.",
            ["handler", "method"],
            buckets=FEW_BUCKETS,
            registry=registry,
        )
        self._seconds_of_all = Histogram(
            "http_request_duration_highr_seconds",
            "Duration of requests in seconds over all routes, in many buckets.",
            buckets=MANY_BUCKETS,
            registry=registry,
        )
        self._request_bytes = Summary(
            "http_request_size_bytes",
            "Declared size of request bodies in bytes.",
            ["handler"],
            registry=registry,
        )
        self._response_bytes = Summary(
            "http_response_size_bytes", "Size of response bodies in bytes.", ["handler"], registry=registry
        )
        for method, path in routes:
            for status in EXPECTED_STATUSES:
                self._requests.labels(path, method, status)
        self._counters = counters
        registry.register(counters)
        # Looking up a labelled child costs more than incrementing it.
        self._children = lru_cache(maxsize=1024)(self._find_children)

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
        requests, duration, size_in, size_out = self._children(handler, method, f"{status // 100}xx")
        requests.inc()
        duration.observe(seconds)
        self._seconds_of_all.observe(seconds)
        size_in.observe(num_bytes_in)
        size_out.observe(num_bytes_out)

    def _find_children(
        self, handler: str, method: str, status: str
    ) -> tuple[Counter, Histogram, Summary, Summary]:
        return (
            self._requests.labels(handler, method, status),
            self._seconds.labels(handler, method),
            self._request_bytes.labels(handler),
            self._response_bytes.labels(handler),
        )


def _find_error_kind(scope: Scope, status: int) -> str | None:
    """Return the kind of error that a response was for; None for a successful one."""
    if status == STATUS_DISCONNECTED:
        return DISCONNECTED
    kind: str | None = scope.get("state", {}).get("error_kind")
    # A status without a kind comes from a route that users have added.
    return kind or (f"http_{status}" if status >= 400 else None)


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
