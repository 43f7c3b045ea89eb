"""Exceptions → HTTP answers: one table, found by MRO, and the shapes that clients parse.

    {"error": {"message": str, "type": str, "param": str | null, "code": <status>}, "message": str}

The second `message` is for pymilvus. A 422 has FastAPI's `detail` list beside it and an HTTPException its
`detail` text, as infinity_client and OpenAI's client each read one of the two. Routes raise; only this module
makes error answers, in the body of a dialect where the request is of one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple, TypeAlias

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infinity_emb.errors import (
    AudioCorruption,
    BackendFailed,
    BadInput,
    DeadlineExceeded,
    DeviceOutOfMemory,
    EngineNotReady,
    ImageCorruption,
    InputTooLong,
    LoadFailed,
    MatryoshkaDimError,
    ModelNotDeployedError,
    ModelTooLarge,
    NameInUse,
    Overloaded,
    ServingError,
    UnknownModel,
)
from infinity_emb.server.encode import json_response
from infinity_emb.server.error_shape import Failure, ShapedError, shape_of
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
    DeadlineExceeded: ErrorKind(504),
    EngineNotReady: ErrorKind(503),
    NameInUse: ErrorKind(409),
    LoadFailed: ErrorKind(400),
    ModelTooLarge: ErrorKind(507),
    BackendFailed: ErrorKind(500),
    DeviceOutOfMemory: ErrorKind(500),
    ServingError: ErrorKind(500),
}
# OpenAI's `error.type`; other statuses say invalid_request_error below 500 and server_error above.
TYPES = {401: "authentication_error", 429: "rate_limit_error"}
RETRY_AFTER_S = {429: 1, 503: 1}
RETRY_HEADERS = ("Retry-After", "retry-after-ms", "x-should-retry")
_OF_THE_MOMENT = (408, 409)  # other statuses of the client's own fault stay what they are


def failure_response(
    scope: Scope,
    failure: Failure,
    *,
    param: str | None = None,
    extra: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The failure in the shape that the request's dialect has for it, or in the server's own.

    param, extra: of the server's own alone; `extra` stands beside `error`.
    """
    shape = shape_of(scope)
    shaped = _own_shape(failure, param, extra) if shape is None else shape(failure)
    all_headers = {**(headers or {}), **retry_headers(shaped.status, failure.error)}
    return json_response(shaped.content, status=shaped.status, headers=all_headers)


def retry_headers(status: int, error: Exception | None) -> dict[str, str]:
    """Whether to send the request again, and when, as OpenAI's clients read it.

    Where nothing is said they try again at 408, 409, 429 and everything from 500 on: also what failed on an
    input that will fail again.
    Source: https://github.com/openai/openai-python, `_should_retry` in src/openai/_base_client.py
    """
    wait_s = error.retry_after_s if isinstance(error, Overloaded) else RETRY_AFTER_S.get(status)
    if wait_s is not None:
        return dict(zip(RETRY_HEADERS, (str(wait_s), str(1000 * wait_s), "true"), strict=True))
    is_by_an_input = isinstance(error, BackendFailed) and error.position is not None
    if is_by_an_input or (status < 500 and status not in _OF_THE_MOMENT):
        return {"x-should-retry": "false"}
    return {}


def _own_shape(failure: Failure, param: str | None, extra: Mapping[str, object] | None) -> ShapedError:
    status, message, _ = failure
    default_type = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": TYPES.get(status, default_type), "param": param, "code": status}
    return ShapedError(status, {"error": error, "message": message, **(extra or {})})


async def answer_serving_error(request: Request, exc: ServingError) -> Response:
    """What this package raises on purpose: its message goes to the client."""
    kind = kind_of(type(exc))
    if kind.status == 500:
        logger.error("request %s failed: %s", request.state.request_id, exc, exc_info=exc)
    failure = Failure(kind.status, str(exc), exc)
    return failure_response(request.scope, failure, param=_param_of(request, exc, kind))


def _param_of(request: Request, exc: ServingError, kind: ErrorKind) -> str | None:
    is_about_an_input = kind.param == INPUT or (kind.status == 400 and exc.position is not None)
    return getattr(request.state, "input_member", INPUT) if is_about_an_input else kind.param


async def answer_http_exception(request: Request, exc: HTTPException) -> Response:
    """404, 405, 413, 415: the text as `detail` too, the headers kept."""
    is_by_router = exc.detail == HTTPStatus(exc.status_code).phrase
    message = f"{exc.detail}: {request.method} {request.url.path}" if is_by_router else exc.detail
    failure = Failure(exc.status_code, message, exc)
    return failure_response(request.scope, failure, extra={"detail": exc.detail}, headers=exc.headers)


async def answer_validation_error(request: Request, exc: RequestValidationError) -> Response:
    """422 with FastAPI's list, inputs shortened, and one sentence of it as the message."""
    details = readable_details(exc.errors())
    message, param = summary_of(details)
    failure = Failure(422, message, exc)
    return failure_response(request.scope, failure, param=param, extra={"detail": details})


def kind_of(error: type[Exception]) -> ErrorKind:
    """The first class of the MRO that the table has."""
    return next(TABLE[each] for each in error.__mro__ if each in TABLE)


Handler: TypeAlias = Callable[[Request, Any], Coroutine[Any, Any, Response]]
HANDLERS: dict[int | type[Exception], Handler] = {
    ServingError: answer_serving_error,
    HTTPException: answer_http_exception,
    RequestValidationError: answer_validation_error,
}


def handler_of(error: Exception) -> Handler | None:
    """That of the first class of the MRO that has one; None for what nobody raised on purpose."""
    return next((HANDLERS[each] for each in type(error).__mro__ if each in HANDLERS), None)


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
            await failure_response(scope, Failure(500, message, None))(scope, receive, send)
