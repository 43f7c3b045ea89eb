"""Counts and times every request. Pure ASGI; knows nothing of models.

The names, labels and buckets are those of prometheus-fastapi-instrumentator, which dashboards for infinity
read.
"""

from __future__ import annotations

import time
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infinity_emb.server.body_limit import declared_bytes

FEW_BUCKETS = (0.1, 0.5, 1)
MANY_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75),
    *(1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 7.5, 10, 30, 60),
)
KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# nginx's number for a client that hung up before its answer.
STATUS_OF_NO_ANSWER = 499


class HTTPMetrics:
    """The metrics of one app."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "http_requests",
            "Requests by route template, method and status group.",
            ["handler", "method", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "http_request_duration_seconds",
            "Seconds from a request's head to the end of its answer, in few buckets, by route.",
            ["handler", "method"],
            buckets=FEW_BUCKETS,
            registry=registry,
        )
        self._seconds_of_all = Histogram(
            "http_request_duration_highr_seconds",
            "Seconds from a request's head to the end of its answer, in many buckets, over all routes.",
            buckets=MANY_BUCKETS,
            registry=registry,
        )
        self._request_bytes = Summary(
            "http_request_size_bytes", "Declared body bytes of requests.", ["handler"], registry=registry
        )
        self._response_bytes = Summary(
            "http_response_size_bytes", "Body bytes of answers.", ["handler"], registry=registry
        )
        # Looking up a labelled child costs more than counting with it.
        self._children = lru_cache(maxsize=1024)(self._find_children)

    def observe(
        self, *, handler: str, method: str, status: int, seconds: float, num_bytes_in: int, num_bytes_out: int
    ) -> None:
        """Note one finished request."""
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


class HTTPMetricsMiddleware:
    """Feed `HTTPMetrics`."""

    def __init__(self, app: ASGIApp, *, metrics: HTTPMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, num_bytes_out = STATUS_OF_NO_ANSWER, 0

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
                handler=getattr(scope.get("route"), "path", "none"),
                method=scope["method"],
                status=status,
                seconds=time.perf_counter() - started_s,
                num_bytes_in=declared_bytes(scope),
                num_bytes_out=num_bytes_out,
            )
