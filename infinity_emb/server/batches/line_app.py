"""Answer single requests of a batch as the route does, with its errors, in the lane for bulk work."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp

from infinity_emb.server.batches.lines import ENDPOINT, Answer
from infinity_emb.server.middleware.unexpected_errors import UnexpectedErrorMiddleware
from infinity_emb.server.requests.in_process import post_json
from infinity_emb.server.responses.errors import HANDLERS

_TEMPORARY = (429, 503)
_MAX_PAUSE_S = 30.0


class LineApp:
    """Send requests to an ASGI app without a socket.

    endpoint: serves the route. app: the whole app, by which errors describe themselves.
    """

    def __init__(self, endpoint: ASGIApp, app: Any) -> None:
        handlers: Mapping[Any, Any] = HANDLERS
        self._endpoint = UnexpectedErrorMiddleware(ExceptionMiddleware(endpoint, handlers=handlers))
        self._app = app

    async def answer(self, body: Mapping[str, object], owner: str) -> Answer:
        """Return the response; wait as long as the server has no room."""
        pause_s = 0.5
        while True:
            answer = await self._send(body, owner)
            if answer.status not in _TEMPORARY:
                return answer
            await asyncio.sleep(pause_s)
            pause_s = min(_MAX_PAUSE_S, 2 * pause_s)

    async def _send(self, body: Mapping[str, object], owner: str) -> Answer:
        request_id = uuid.uuid4().hex
        # No line leaves the lane, or gives itself less time than the batch has.
        content = orjson.dumps({**body, "priority": "bulk", "timeout": None})
        response = await post_json(
            self._endpoint,
            ENDPOINT,
            content,
            app=self._app,
            state={"request_id": request_id, "client": owner},
        )
        if response.headers.get(b"content-type", b"").startswith(b"application/json"):
            return Answer(response.status, request_id, response.body)
        message = "the response is not JSON, which a line has no place for; leave out encoding_format"
        error = {"message": message, "type": "invalid_request_error", "param": "encoding_format", "code": 400}
        return Answer(400, request_id, orjson.dumps({"error": error}))
