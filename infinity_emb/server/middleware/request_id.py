"""Give every request an id, the client's `x-request-id` or a new one, and return it in the response.

Log messages find it in `request.state.request_id`.
"""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infinity_emb.server.random_ids import make_random_id

HEADER = b"x-request-id"
# Other characters could break a log line or a header.
_SAFE = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


class RequestIdMiddleware:
    """Read or create the id, and add it to the response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = choose_request_id(scope["headers"])
        scope.setdefault("state", {})["request_id"] = request_id.decode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (HEADER, request_id)]
            await send(message)

        await self._app(scope, receive, send_with_id)


def choose_request_id(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return the client's id if it is safe, else a new one."""
    for name, value in headers:
        if name == HEADER and _SAFE.fullmatch(value):
            return value
    return make_random_id().encode()
