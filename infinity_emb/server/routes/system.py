"""`/health`, `/ready` and `/metrics`: what orchestrators and Prometheus read.

They are never below the prefix, and open to everyone; only the metrics may be protected.
"""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import PlainTextResponse, Response

from infinity_emb.concurrency import run_on_daemon_thread
from infinity_emb.errors import EngineNotReady
from infinity_emb.scheduling.paced_call import PacedCall
from infinity_emb.server.requests.call import Call
from infinity_emb.server.responses.error_docs import NOT_READY, Errors
from infinity_emb.server.responses.json_vectors import json_response
from infinity_emb.server.routing import Endpoint, Form
from infinity_emb.server.schemas.system import Health, Readiness

METRICS_PATH = "/metrics"
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
    """Render the metrics of a registry, on a thread: that takes tens of milliseconds.

    Concurrent scrapes share one text, and those that follow soon the next one.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._text = PacedCall(self._render)

    async def metrics(self, call: Call) -> Response:
        """Return Prometheus metrics.

        They cover the HTTP server, every model and the process.
        """
        return Response(await self._text.get(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _render(self) -> bytes:
        return await run_on_daemon_thread(lambda: generate_latest(self._registry), "infinity-metrics")


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
