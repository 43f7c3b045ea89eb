"""Document error responses in OpenAPI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from pydantic import BaseModel

from infinity_emb.server.error_format import ErrorFormat
from infinity_emb.server.schemas.errors import ErrorResponse, HTTPErrorResponse, ValidationErrorResponse

Documented: TypeAlias = dict[str, Any]
# Status → its documentation.
ErrorDocs: TypeAlias = "Mapping[int | str, Documented]"


def _header(description: str, kind: str) -> Documented:
    return {"description": description, "schema": {"type": kind}}


def permanent_error(
    description: str, model: type[BaseModel] = ErrorResponse, *, when: str = "always"
) -> Documented:
    """Document an error that the same request would cause again; `when` says in which cases."""
    header = _header(f"`false`, {when}: the same request would fail again.", "string")
    return {"description": description, "model": model, "headers": {"x-should-retry": header}}


def _transient_error(description: str) -> Documented:
    headers = {
        "Retry-After": _header("Seconds to wait before retrying.", "integer"),
        "retry-after-ms": _header("Milliseconds to wait before retrying.", "integer"),
        "x-should-retry": _header("`true`.", "string"),
    }
    return {"description": description, "model": ErrorResponse, "headers": headers}


UNAUTHORIZED = permanent_error("The API key is missing or wrong.", HTTPErrorResponse)
NOT_FOUND = permanent_error("No such model.")
INVALID = permanent_error("The request does not match the schema.", ValidationErrorResponse)
NOT_READY = _transient_error("A model is not loaded, is shutting down, or its worker thread has crashed.")

TASK_ERRORS: ErrorDocs = {
    400: permanent_error("The model cannot serve this request."),
    404: NOT_FOUND,
    413: permanent_error("The body exceeds the size limit.", HTTPErrorResponse),
    415: permanent_error("The content type is not JSON.", HTTPErrorResponse),
    422: INVALID,
    429: _transient_error("The queue is full."),
    500: permanent_error("Inference failed.", when="if one of the inputs is the cause"),
    503: NOT_READY,
    504: {"description": "The request's `timeout` has passed.", "model": ErrorResponse},
}

NAME_IN_USE: Documented = {
    "description": "A model of that name is served, or is being loaded, unloaded or reloaded.",
    "model": ErrorResponse,
}
LOAD_ERRORS: ErrorDocs = {
    400: permanent_error("The model cannot be served."),
    **{status: TASK_ERRORS[status] for status in (413, 415)},
    409: NAME_IN_USE,
    422: INVALID,
    503: NOT_READY,
    507: {"description": "The model does not fit into memory.", "model": ErrorResponse},
}


class Errors(NamedTuple):
    """The errors of a request form: their documentation, for all statuses but 401, and their format.

    format: None for the server's own.
    """

    docs: ErrorDocs
    format: ErrorFormat | None = None


OWN_ERRORS = Errors(TASK_ERRORS)


def with_error_model(errors: ErrorDocs, model: type[BaseModel]) -> ErrorDocs:
    """Document the same errors with the body of another dialect."""
    return {status: {**error, "model": model} for status, error in errors.items()}


def union_errors(ours: ErrorDocs, theirs: ErrorDocs) -> ErrorDocs:
    """Document the errors of an endpoint that accepts forms of two dialects."""
    merged = {
        status: {**error, "model": error["model"] | theirs[status]["model"]} if status in theirs else error
        for status, error in ours.items()
    }
    return {**theirs, **merged}
