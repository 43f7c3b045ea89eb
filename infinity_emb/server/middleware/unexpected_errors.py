"""Turn unexpected exceptions into a 500: the cause goes to the log, the request's id to the client."""

from __future__ import annotations

import logging

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infinity_emb.server.error_format import Failure
from infinity_emb.server.responses.errors import failure_response

logger = logging.getLogger("infinity_emb")


class UnexpectedErrorMiddleware:
    """Log exceptions without a handler and respond with 500; ignore disconnected clients."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_started = False

        async def send_noting_start(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting_start)
        except ClientDisconnect:
            logger.debug("client disconnected")
        except Exception as exc:
            if is_started or scope["type"] != "http":
                raise
            request_id = scope["state"]["request_id"]
            logger.error("request %s failed: %r", request_id, exc, exc_info=exc)
            message = f"internal error; see the server's log under request id {request_id}"
            await failure_response(scope, Failure(500, message, None))(scope, receive, send)
