"""Convert exceptions to HTTP responses by one table, in the formats that clients parse.

{"error": {"message": str, "type": str, "param": str | null, "code": <status>}, "message": str}

The second `message` is for pymilvus. A 422 has FastAPI's `detail` list instead, for infinity_client, and an
HTTPException FastAPI's `detail` text as well. Routes only raise; requests of a dialect get its format.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple, TypeAlias

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from infinity_emb.config.parsing import did_you_mean
from infinity_emb.errors import (
    QUERY_POSITION,
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
    ModelNotNamed,
    ModelTooLarge,
    NameInUse,
    Overloaded,
    ServingError,
    UnknownModel,
)
from infinity_emb.server.error_format import Failure, FormattedError, get_error_context
from infinity_emb.server.request_errors import describe_errors, shorten, summarize_errors
from infinity_emb.server.requests.paths import strip_root_path
from infinity_emb.server.responses.json_vectors import json_response
from infinity_emb.server.responses.server_timing import timing_headers

logger = logging.getLogger("infinity_emb")


class ErrorKind(NamedTuple):
    """The status and the field that caused the error."""

    status: int
    param: str | None = None


# Stands for the field with the inputs: `input`, `inputs` or `documents`.
INPUT = "input"
TABLE: dict[type[Exception], ErrorKind] = {
    InputTooLong: ErrorKind(400, INPUT),
    ImageCorruption: ErrorKind(400, INPUT),
    AudioCorruption: ErrorKind(400, INPUT),
    MatryoshkaDimError: ErrorKind(400, "dimensions"),
    UnknownModel: ErrorKind(404, "model"),
    ModelNotNamed: ErrorKind(400, "model"),
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
# OpenAI's `error.type`; other statuses mean invalid_request_error below 500 and server_error above.
TYPES = {401: "authentication_error", 429: "rate_limit_error"}
RETRY_AFTER_S = {429: 1, 503: 1}
RETRY_HEADERS = ("Retry-After", "retry-after-ms", "x-should-retry")
_TEMPORARY = (408, 409)  # other statuses below 500 are permanent


def _name_kind(error: type[Exception]) -> str:
    """Write `InputTooLong` as `input_too_long`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", error.__name__).lower()


INVALID_REQUEST, UNEXPECTED, DISCONNECTED = "invalid_request", "unexpected", "disconnected"
OVERLOADED = _name_kind(Overloaded)
# The kinds of errors that metrics count, of requests whose model is known, and of others.
ERROR_KINDS = (*map(_name_kind, TABLE), INVALID_REQUEST, UNEXPECTED, DISCONNECTED)
MODELLESS_ERROR_KINDS = (
    *map(_name_kind, (UnknownModel, ModelNotNamed, EngineNotReady)),
    *(f"http_{status}" for status in (401, 404, 405, 413, 415, 503)),
    *(INVALID_REQUEST, UNEXPECTED, DISCONNECTED),
)


def find_failure_kind(failure: Failure) -> str:
    """Return the name under which metrics count a failure."""
    match failure.error:
        case None:
            return UNEXPECTED
        case ServingError():
            return _name_kind(find_error_class(type(failure.error)))
        case HTTPException(status_code=status):
            return f"http_{status}"
        case _:
            return INVALID_REQUEST


def failure_response(
    scope: Scope,
    failure: Failure,
    *,
    param: str | None = None,
    extra: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Make an error response in the format of the request's dialect, or in the server's own.

    param, extra: only used by the server's own format; `extra` is added next to `error`.
    """
    scope.setdefault("state", {})["error_kind"] = find_failure_kind(failure)
    format_error = get_error_context(scope).format
    formatted = _format_error(failure, param, extra) if format_error is None else format_error(failure)
    all_headers = {
        **(headers or {}),
        **retry_headers(formatted.status, failure.error),
        **timing_headers(scope),
    }
    return json_response(formatted.content, status=formatted.status, headers=all_headers)


def retry_headers(status: int, error: Exception | None) -> dict[str, str]:
    """Return the headers that tell OpenAI's clients whether and when to retry.

    Without them they retry 408, 409, 429 and all statuses from 500, even if an input will fail again.
    Source: https://github.com/openai/openai-python, `_should_retry` in src/openai/_base_client.py
    """
    wait_s = error.retry_after_s if isinstance(error, Overloaded) else RETRY_AFTER_S.get(status)
    if wait_s is not None:
        return dict(zip(RETRY_HEADERS, (str(wait_s), str(1000 * wait_s), "true"), strict=True))
    is_caused_by_input = isinstance(error, BackendFailed) and error.position is not None
    if is_caused_by_input or (status < 500 and status not in _TEMPORARY):
        return {"x-should-retry": "false"}
    return {}


def _format_error(failure: Failure, param: str | None, extra: Mapping[str, object] | None) -> FormattedError:
    status, message, _ = failure
    default_type = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": TYPES.get(status, default_type), "param": param, "code": status}
    # The sentence stands where clients look for it: in `detail` too, or else as `message`.
    beside = {} if extra and isinstance(extra.get("detail"), list) else {"message": message}
    return FormattedError(status, {"error": error, **beside, **(extra or {})})


async def handle_serving_error(request: Request, exc: ServingError) -> Response:
    """Handle errors of this package, whose messages are for clients."""
    kind = find_error_kind(type(exc))
    if kind.status == 500:
        logger.error("request %s failed: %s", request.state.request_id, exc, exc_info=exc)
    failure = Failure(kind.status, str(exc), exc)
    return failure_response(request.scope, failure, param=_find_param(request, exc, kind))


def _find_param(request: Request, exc: ServingError, kind: ErrorKind) -> str | None:
    if exc.position == QUERY_POSITION:
        return "query"
    is_about_input = kind.param == INPUT or (kind.status == 400 and exc.position is not None)
    return get_error_context(request.scope).input_field if is_about_input else kind.param


async def handle_http_exception(request: Request, exc: HTTPException) -> Response:
    """Handle 404, 405, 413 and 415: keep the headers, and name the status as `detail`."""
    phrase = HTTPStatus(exc.status_code).phrase
    message = str(exc.detail)
    if message == phrase:
        message = f"{message}: {request.method} {shorten(request.url.path)}"
        if exc.status_code == 404:
            message += _suggest_path(request) or _point_to_docs(request)
    failure = Failure(exc.status_code, message, exc)
    return failure_response(request.scope, failure, extra={"detail": phrase}, headers=exc.headers)


def _point_to_docs(request: Request) -> str:
    """Say where all paths are listed, if the page is served."""
    document: str | None = request.app.openapi_url
    return f"; {document.removesuffix('openapi.json')}docs lists all paths" if document else ""


def _suggest_path(request: Request) -> str:
    """Name the most similar path: base URLs are often given with a /v1 too many, or too few."""
    paths = [path for route in request.app.routes if (path := getattr(route, "path", "")) and "{" not in path]
    return did_you_mean(str(shorten(strip_root_path(request.scope))), paths)


async def handle_validation_error(request: Request, exc: RequestValidationError) -> Response:
    """Handle 422: return FastAPI's list with shortened inputs, and a sentence about it as the message."""
    details = describe_errors(exc.errors())
    message, param = summarize_errors(details)
    failure = Failure(422, message, exc)
    return failure_response(request.scope, failure, param=param, extra={"detail": details})


def find_error_kind(error: type[Exception]) -> ErrorKind:
    """Look up the nearest base class in the table."""
    return TABLE[find_error_class(error)]


def find_error_class(error: type[Exception]) -> type[Exception]:
    """Return the nearest base class that is in the table."""
    return next(cls for cls in error.__mro__ if cls in TABLE)


Handler: TypeAlias = Callable[[Request, Any], Coroutine[Any, Any, Response]]
HANDLERS: dict[int | type[Exception], Handler] = {
    ServingError: handle_serving_error,
    HTTPException: handle_http_exception,
    RequestValidationError: handle_validation_error,
}
