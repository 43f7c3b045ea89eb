"""Exceptions → HTTP answers: one table, found by MRO, and the shapes that clients parse.

    {"error": {"message": str, "type": str, "param": str | null, "code": <status>}}

A 422 has FastAPI's `detail` list beside it and an HTTPException its `detail` text, as infinity_client and
OpenAI's client each read one of the two. Routes raise; only this module makes error answers, in the body of
a dialect where the request is of one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infinity_emb.errors import (
    AudioCorruption,
    BackendFailed,
    BadInput,
    EngineNotReady,
    ImageCorruption,
    InputTooLong,
    MatryoshkaDimError,
    ModelNotDeployedError,
    Overloaded,
    ServingError,
    UnknownModel,
)
from infinity_emb.server.encode import json_response
from infinity_emb.server.error_shape import Failure, shape_of
from infinity_emb.server.validation import readable_details, summary_of

logger = logging.getLogger("infinity_emb")


class ErrorKind(NamedTuple):
    """Status, and the request's field that is to blame."""

    status: int
    param: str | None = None


# Stands for the member that holds a request's inputs: `input`, `inputs` or `documents`.
INPUT = "input"
TABLE: dict[type[Exception], ErrorKind] = {
    InputTooLong: ErrorKind(400, INPUT),
    ImageCorruption: ErrorKind(400, INPUT),
    AudioCorruption: ErrorKind(400, INPUT),
    MatryoshkaDimError: ErrorKind(400, "dimensions"),
    UnknownModel: ErrorKind(400, "model"),
    ModelNotDeployedError: ErrorKind(400, "model"),
    BadInput: ErrorKind(400),
    Overloaded: ErrorKind(429),
    EngineNotReady: ErrorKind(503),
    BackendFailed: ErrorKind(500),
    ServingError: ErrorKind(500),
}
# OpenAI's `error.type`; other statuses say invalid_request_error below 500 and server_error above.
TYPES = {401: "authentication_error", 429: "rate_limit_error"}
RETRY_AFTER = {429: "1", 503: "1"}  # seconds


def error_response(
    status: int,
    message: str,
    *,
    param: str | None = None,
    extra: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The error body with this status; `extra` stands beside `error`."""
    default_type = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": TYPES.get(status, default_type), "param": param, "code": status}
    all_headers = {**(headers or {}), **_retry_header(status)}
    return json_response({"error": error, **(extra or {})}, status=status, headers=all_headers)


async def answer_serving_error(request: Request, exc: ServingError) -> Response:
    """What this package raises on purpose: its message goes to the client."""
    kind = kind_of(type(exc))
    if kind.status == 500:
        logger.error("request %s failed: %s", request.state.request_id, exc, exc_info=exc)
    failure = Failure(kind.status, str(exc), exc)
    return _answer(request.scope, failure, param=_param_of(request, exc, kind))


def _answer(
    scope: Scope,
    failure: Failure,
    *,
    param: str | None = None,
    extra: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The failure in the shape that the request's dialect has for it."""
    shape = shape_of(scope)
    if shape is None:
        return error_response(failure.status, failure.message, param=param, extra=extra, headers=headers)
    shaped = shape(failure)
    return json_response(
        shaped.content, status=shaped.status, headers={**(headers or {}), **_retry_header(shaped.status)}
    )


def _retry_header(status: int) -> dict[str, str]:
    return {"Retry-After": RETRY_AFTER[status]} if status in RETRY_AFTER else {}


def _param_of(request: Request, exc: ServingError, kind: ErrorKind) -> str | None:
    is_about_an_input = kind.param == INPUT or (kind.status == 400 and exc.position is not None)
    return getattr(request.state, "input_member", INPUT) if is_about_an_input else kind.param


async def answer_http_exception(request: Request, exc: HTTPException) -> Response:
    """404, 405, 413, 415: the text as `detail` too, the headers kept."""
    is_by_router = exc.detail == HTTPStatus(exc.status_code).phrase
    message = f"{exc.detail}: {request.method} {request.url.path}" if is_by_router else exc.detail
    failure = Failure(exc.status_code, message, exc)
    return _answer(request.scope, failure, extra={"detail": exc.detail}, headers=exc.headers)


async def answer_validation_error(request: Request, exc: RequestValidationError) -> Response:
    """422 with FastAPI's list, inputs shortened, and one sentence of it as the message."""
    details = readable_details(exc.errors())
    message, param = summary_of(details)
    return _answer(request.scope, Failure(422, message, exc), param=param, extra={"detail": details})


def kind_of(error: type[Exception]) -> ErrorKind:
    """The first class of the MRO that the table has."""
    return next(TABLE[each] for each in error.__mro__ if each in TABLE)


HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    ServingError: answer_serving_error,
    HTTPException: answer_http_exception,
    RequestValidationError: answer_validation_error,
}


class UnexpectedErrorMiddleware:
    """What nobody raised on purpose: its text goes to the log, the request's id to the client."""

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
            logger.debug("a client hung up before its answer")
        except Exception as exc:
            if is_started or scope["type"] != "http":
                raise
            request_id = scope["state"]["request_id"]
            logger.error("request %s failed: %r", request_id, exc, exc_info=exc)
            message = f"internal error; the server's log tells the cause under request id {request_id}"
            await _answer(scope, Failure(500, message, None))(scope, receive, send)
