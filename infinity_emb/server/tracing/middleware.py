"""Give each request a span, and write the spans of its stages when it has ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import TypeAlias

from opentelemetry import propagate, trace
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.trace import Tracer as SDKTracer
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind, StatusCode
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infinity_emb._version import __version__
from infinity_emb.concurrency import run_on_daemon_thread
from infinity_emb.server.middleware.http_metrics import KNOWN_METHODS
from infinity_emb.server.requests.paths import strip_root_path
from infinity_emb.server.tracing.provider import open_provider
from infinity_emb.server.tracing.spans import SpanWriter, TracedStages

logger = logging.getLogger("infinity_emb")

Headers: TypeAlias = "list[tuple[bytes, bytes]]"
# How long a stop waits for spans that are not exported yet.
FLUSH_TIMEOUT_S = 5.0


class _HeaderGetter(Getter[Headers]):
    """Read the headers of a request for the propagators, those of `traceparent` by default."""

    def get(self, carrier: Headers, key: str) -> list[str] | None:
        name = key.lower().encode()
        return [value.decode("latin-1") for each, value in carrier if each == name] or None

    def keys(self, carrier: Headers) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier]


_GETTER = _HeaderGetter()


class Tracing:
    """The tracer of one app, which exists while the app runs (`async with`)."""

    def __init__(self) -> None:
        self.tracer: trace.Tracer = trace.NoOpTracer()
        self.writer = SpanWriter(self.tracer)
        self._provider: TracerProvider | None = None  # to shut down

    async def __aenter__(self) -> Tracing:
        provider = open_provider()
        self.tracer = tracer = provider.get_tracer("infinity_emb", __version__)
        # A provider of the process is shut down by its owner, and its processors may need `on_start`.
        self._provider = None if provider is trace.get_tracer_provider() else provider
        is_ours = self._provider is not None
        self.writer = SpanWriter(
            tracer, tracer.span_processor if is_ours and isinstance(tracer, SDKTracer) else None
        )
        return self

    def middleware(self, untraced_paths: Collection[str]) -> Middleware:
        """Return the middleware that traces all requests but those to some paths."""
        return Middleware(TracingMiddleware, tracing=self, untraced_paths=untraced_paths)

    async def __aexit__(self, *_: object) -> None:
        """Export what is left; a collector that does not respond must not delay the stop for long."""
        provider, self._provider = self._provider, None
        if provider is None:
            return
        shutdown = asyncio.ensure_future(run_on_daemon_thread(provider.shutdown, "infinity-otel"))
        await asyncio.wait([shutdown], timeout=FLUSH_TIMEOUT_S)
        if not shutdown.done():
            shutdown.cancel()
            logger.warning("the last spans were not exported within %g s", FLUSH_TIMEOUT_S)


class TracingMiddleware:
    """Trace each request.

    untraced_paths: those of orchestrators and Prometheus, without the prefix of a proxy.
    """

    def __init__(self, app: ASGIApp, *, tracing: Tracing, untraced_paths: Collection[str]) -> None:
        self._app = app
        self._tracing = tracing
        self._untraced_paths = frozenset(untraced_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or strip_root_path(scope) in self._untraced_paths:
            await self._app(scope, receive, send)
            return
        is_inside = trace.get_current_span().get_span_context().is_valid  # of a user's own middleware
        parent = None if is_inside else propagate.extract(scope["headers"], getter=_GETTER)
        span = self._tracing.tracer.start_span("HTTP", parent, SpanKind.SERVER)
        # Made current for other code in the process that writes spans or logs.
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            if span.is_recording():
                await self._record(span, scope, receive, send)
            else:  # the client or the sampler decided against it
                await self._app(scope, receive, send)

    async def _record(self, span: Span, scope: Scope, receive: Receive, send: Send) -> None:
        status = 0
        stages = TracedStages(span, scope)
        scope.setdefault("state", {})["stages"] = stages

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noting_status)
        finally:
            _describe(span, scope, stages, status)
            self._tracing.writer.write(stages)


def _describe(span: Span, scope: Scope, stages: TracedStages, status: int) -> None:
    """Name the span and set the attributes of an HTTP server, as the semantic conventions say.

    status: 0 if the client disconnected before the response.
    Source: https://opentelemetry.io/docs/specs/semconv/http/http-spans/
    """
    is_known = scope["method"] in KNOWN_METHODS
    attributes: dict[str, str | int] = {
        "http.request.method": scope["method"] if is_known else "_OTHER",
        "url.scheme": scope.get("scheme", "http"),
        "url.path": scope["path"],
        "infinity.request_id": scope["state"].get("request_id", ""),
    }
    if route := getattr(scope.get("route"), "path", None):
        span.update_name(f"{scope['method'] if is_known else 'HTTP'} {route}")
        attributes["http.route"] = route
    if stages.model:
        attributes["infinity.model"] = stages.model
    if status:
        attributes["http.response.status_code"] = status
    if not status or status >= 500:
        attributes["error.type"] = str(status) if status else "disconnected"
        span.set_status(StatusCode.ERROR)
    span.set_attributes(attributes)
