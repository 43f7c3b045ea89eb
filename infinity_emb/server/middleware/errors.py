"""Turn exceptions into error responses; of an unexpected one, the client gets only the request's id."""

from __future__ import annotations

import logging

from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infinity_emb.server.error_format import Failure
from infinity_emb.server.responses.errors import failure_response

logger = logging.getLogger("infinity_emb")


class ErrorMiddleware:
    """Respond with the app's handler for an exception; log an exception without one and respond with 500.

    Starlette's middleware for handlers would take part in every request, so it is only asked after an error.
    """

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
            await _respond(exc, scope, receive, send)


async def _respond(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    async def fail(*_: object) -> None:
        raise error

    handlers = {Exception: _handle_unexpected, **scope["app"].exception_handlers}
    await ExceptionMiddleware(fail, handlers)(scope, receive, send)


async def _handle_unexpected(request: Request, error: Exception) -> Response:
    request_id = request.state.request_id
    logger.error("request %s failed: %r", request_id, error, exc_info=error)
    message = f"internal error; see the server's log under request id {request_id}"
    return failure_response(request.scope, Failure(500, message, None))
