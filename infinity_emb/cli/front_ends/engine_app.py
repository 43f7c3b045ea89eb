"""Build the app of the engine process: pages, administration, batches, and models loaded at run time."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from infinity_emb.cli.front_ends.engine_service import EngineService
from infinity_emb.cli.front_ends.reports import SummingRegistry
from infinity_emb.config.server_config import ServerConfig
from infinity_emb.engine.array import AsyncEngineArray
from infinity_emb.server.app import build_app
from infinity_emb.server.endpoints import PROBE_PATHS
from infinity_emb.server.routes.system import METRICS_PATH
from infinity_emb.server.server_app import ServerApp


def build_engine_app(array: AsyncEngineArray, config: ServerConfig, service: EngineService) -> ServerApp:
    """Build the app and connect it with the service. Raises StartupError."""
    app = build_app(array, config, registry=SummingRegistry(service.list_reports))
    app.state.context.models.on_change = service.share_models
    if app.state.batches is not None:
        service.on_admit = app.state.batches.note_request
    app.add_middleware(ReportsMiddleware, service=service)
    if config.docs:
        app.openapi()  # kept: the first request for it would block the event loop
    service.app = app
    return app


class ReportsMiddleware:
    """Collect the counters of all processes before each page that shows them, which is a GET request."""

    def __init__(self, app: ASGIApp, *, service: EngineService) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            path = scope["path"]
            if path == METRICS_PATH or path not in PROBE_PATHS:
                await self._service.collect_reports()
        await self._app(scope, receive, send)
