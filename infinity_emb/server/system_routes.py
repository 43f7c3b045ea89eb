"""What orchestrators ask a server: is it alive, is it ready, what has it done.

Never under the prefix, and open to everybody; only the metrics may be closed.
"""

from __future__ import annotations

import time

from fastapi import APIRouter
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import PlainTextResponse, Response

from infinity_emb.errors import EngineNotReady
from infinity_emb.server.encode import json_response
from infinity_emb.server.error_docs import NOT_READY
from infinity_emb.server.schemas.system import Health, Readiness
from infinity_emb.server.served_engines import ServedEngines

OPEN_PATHS = ("/", "/health", "/ready")
METRICS_PATH = "/metrics"


class SystemRoutes:
    """The handlers, over one app's engines and metrics."""

    def __init__(self, served: ServedEngines, registry: CollectorRegistry) -> None:
        self._served = served
        self._registry = registry

    async def health(self) -> Response:
        """200 while every model's device thread lives; after a 503 only a restart helps."""
        dead = [engine.engine_args.served_model_name for engine in self._served.array if engine.is_dead]
        if dead:
            raise EngineNotReady(f"the device thread of {', '.join(dead)} died; restart the server")
        return json_response({"unix": time.time()})

    async def ready(self) -> Response:
        """200 when every model answers; 503 while one loads, stops, comes back from a fault or is dead."""
        engines = self._served.array
        waiting = [engine.engine_args.served_model_name for engine in engines if not engine.is_ready]
        if waiting:
            raise EngineNotReady(f"not ready: {', '.join(waiting)}")
        return json_response({"ready": True})

    async def metrics(self) -> Response:
        """Prometheus metrics of the HTTP server, of every model and of the process."""
        return Response(generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def add_system_routes(router: APIRouter, routes: SystemRoutes, *, has_metrics: bool = True) -> None:
    """Register the handlers."""
    router.add_api_route(
        "/health", routes.health, operation_id="health", response_model=Health, responses={503: NOT_READY}
    )
    router.add_api_route(
        "/ready", routes.ready, operation_id="ready", response_model=Readiness, responses={503: NOT_READY}
    )
    if has_metrics:
        router.add_api_route(
            METRICS_PATH, routes.metrics, operation_id="metrics", response_class=PlainTextResponse
        )
