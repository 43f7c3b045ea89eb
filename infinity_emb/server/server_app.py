"""The app: FastAPI with its own OpenAPI document, and without the parts that the router replaces."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from infinity_emb.engine.array import AsyncEngineArray
from infinity_emb.server.openapi import build_document
from infinity_emb.server.routes.docs import get_root_path


class ServerApp(FastAPI):
    """A FastAPI app with the engines that it serves, which exist once it has started."""

    engine_array: AsyncEngineArray
    _encoded: tuple[object, str, bytes] = (None, "", b"")  # a document, its root path and its text

    def disable_unused_telemetry(self) -> None:
        """Disable FastAPI's telemetry, which looks for providers in each request, unless there are any."""
        if not self._native_telemetry.enabled():
            self._telemetry.update({"tracing": False, "metrics": False, "logs": False})

    def setup(self) -> None:
        """Serve the OpenAPI document without FastAPI's pages."""
        if self.openapi_url:
            self.add_route(self.openapi_url, self._send_document, include_in_schema=False)

    async def _send_document(self, request: Request) -> Response:
        """Send the document, which is encoded once: that takes as long as a hundred small requests."""
        document, root = self.openapi(), get_root_path(request)
        if self._encoded[:2] != (document, root):
            servers = {"servers": [{"url": root}]} if root else {}
            self._encoded = document, root, orjson.dumps({**document, **servers})
        return Response(self._encoded[2], media_type="application/json")

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, which is built once."""
        if self.openapi_schema is None:
            self.openapi_schema = build_document(self)
        return self.openapi_schema

    def build_middleware_stack(self) -> ASGIApp:
        """Build Starlette's stack; the router has the parts of FastAPI's that routes of users need."""
        return Starlette.build_middleware_stack(self)
