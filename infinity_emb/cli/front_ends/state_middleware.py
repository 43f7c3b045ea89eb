"""Hold requests while the engine process does not read, and refresh the state that pages show."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from infinity_emb.cli.front_ends.client import EngineClient
from infinity_emb.server.endpoints import PROBE_PATHS
from infinity_emb.server.routes.system import METRICS_PATH


class EngineStateMiddleware:
    """Request the state of the engine process before each page that shows it, which is a GET request."""

    def __init__(self, app: ASGIApp, *, client: EngineClient) -> None:
        self._app = app
        self._client = client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["method"] in ("GET", "HEAD"):
                is_probe = scope["path"] in PROBE_PATHS and scope["path"] != METRICS_PATH
                await self._client.refresh(with_reports=not is_probe)
            else:
                await self._client.link.wait_until_writable()
        await self._app(scope, receive, send)
