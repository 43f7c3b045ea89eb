"""`/health`, `/ready` and `/metrics`: what orchestrators and Prometheus read.

They are never below the prefix, and open to everyone; only the metrics may be protected.
"""

from __future__ import annotations

import asyncio
import time

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import PlainTextResponse, Response

from infinity_emb.errors import EngineNotReady
from infinity_emb.server.requests.call import Call
from infinity_emb.server.responses.error_docs import NOT_READY, Errors
from infinity_emb.server.responses.json_vectors import json_response
from infinity_emb.server.routing import Endpoint, Form
from infinity_emb.server.schemas.system import Health, Readiness

METRICS_PATH = "/metrics"
MAX_REST_S = 1.0
TAG = "Health and metrics"


async def health(call: Call) -> Response:
    """Check that the server is alive.

    Returns 200 while every model's worker thread is alive; after a 503 only a restart helps.
    """
    dead = [engine.engine_args.served_model_name for engine in call.models.array if engine.slot.is_dead]
    if dead:
        raise EngineNotReady(f"the worker thread of {', '.join(dead)} has crashed; restart the server")
    return json_response({"unix": time.time()})


async def ping(call: Call) -> Response:
    """Check that the server is alive.

    Works like `/health`, at the path that SageMaker requests.
    """
    return await health(call)


async def ready(call: Call) -> Response:
    """Check that the server is ready.

    Returns 200 when every model is ready, and 503 while one is loading, stopping, recovering or dead.
    """
    engines = call.models.array
    waiting = [engine.engine_args.served_model_name for engine in engines if not engine.slot.is_ready]
    if waiting:
        raise EngineNotReady(f"not ready: {', '.join(waiting)}")
    return json_response({"ready": True})


ENDPOINTS = [
    Endpoint(
        path,
        [Form(handler, None, response, errors=Errors({503: NOT_READY}))],
        method="GET",
        is_prefixed=False,
    )
    for path, handler, response in (
        ("/health", health, Health),
        ("/ready", ready, Readiness),
        ("/ping", ping, Health),
    )
]


class MetricsPage:
    """Render the metrics of a registry; concurrent scrapes share one text, which takes tens of milliseconds.

    Scrapes that follow soon share the next text, so that rendering takes a fifth of the loop's time at most.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._next: asyncio.Task[bytes] | None = None  # waits in `_render`
        self._begins_at_s = 0.0

    async def metrics(self, call: Call) -> Response:
        """Return Prometheus metrics.

        They cover the HTTP server, every model and the process.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._render())
        text = await asyncio.shield(self._next)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _render(self) -> bytes:
        # Requests that arrive during the sleep share this text.
        await asyncio.sleep(max(0.0, self._begins_at_s - time.monotonic()))
        self._next = None
        started_s = time.monotonic()
        text = generate_latest(self._registry)
        ended_s = time.monotonic()
        self._begins_at_s = ended_s + min(MAX_REST_S, 4 * (ended_s - started_s))
        return text


def make_metrics_endpoint(registry: CollectorRegistry) -> Endpoint:
    """Make the endpoint that exposes the registry."""
    return Endpoint(
        METRICS_PATH,
        [Form(MetricsPage(registry).metrics, None, None, errors=Errors({}))],
        method="GET",
        is_prefixed=False,
        response_class=PlainTextResponse,
        tag=TAG,
    )
