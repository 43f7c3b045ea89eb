"""Serve single requests of a batch as the route does, errors included, in the bulk lane."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp

from infinity_emb.server.batches.lines import ENDPOINT, LineResponse
from infinity_emb.server.middleware.unexpected_errors import UnexpectedErrorMiddleware
from infinity_emb.server.requests.in_process import post_json
from infinity_emb.server.responses.errors import HANDLERS

_TEMPORARY = (429, 503)
_MAX_PAUSE_S = 30.0


class LineApp:
    """Send requests to an ASGI app without a socket.

    endpoint: serves the route. app: the whole app, which error handlers look at.
    """

    def __init__(self, endpoint: ASGIApp, app: Any) -> None:
        handlers: Mapping[Any, Any] = HANDLERS
        self._endpoint = UnexpectedErrorMiddleware(ExceptionMiddleware(endpoint, handlers=handlers))
        self._app = app

    async def respond(self, body: bytes, owner: str) -> LineResponse:
        """Return the response; retry while the server has no room."""
        pause_s = 0.5
        while True:
            response = await self._send(body, owner)
            if response.status not in _TEMPORARY:
                return response
            await asyncio.sleep(pause_s)
            pause_s = min(_MAX_PAUSE_S, 2 * pause_s)

    async def _send(self, body: bytes, owner: str) -> LineResponse:
        request_id = uuid.uuid4().hex
        response = await post_json(
            self._endpoint, ENDPOINT, body, app=self._app, state={"request_id": request_id, "client": owner}
        )
        if response.headers.get(b"content-type", b"").startswith(b"application/json"):
            return LineResponse(response.status, request_id, response.body)
        message = "the response is not JSON, which a result line cannot hold; leave out encoding_format"
        error = {"message": message, "type": "invalid_request_error", "param": "encoding_format", "code": 400}
        return LineResponse(400, request_id, orjson.dumps({"error": error}))
