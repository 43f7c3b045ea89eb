"""Every request has an id: the client's `x-request-id`, or a new one; every response carries it.

Pure ASGI. The id stands in `request.state.request_id` for whoever logs.
"""

from __future__ import annotations

import os
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = b"x-request-id"
# What a client may choose: nothing that could break a log line or a header.
_SANE = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


class RequestIdMiddleware:
    """Take the id from the request or make one, and put it on the response."""

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
    """The client's id where it is short and plain, else a new one."""
    for name, value in headers:
        if name == HEADER and _SANE.fullmatch(value):
            return value
    return os.urandom(16).hex().encode()
