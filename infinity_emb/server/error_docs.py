"""The error answers of the routes, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from infinity_emb.server.schemas.errors import ErrorResponse, HTTPErrorResponse, ValidationErrorResponse
from infinity_emb.server.schemas.tei import TeiError
from infinity_emb.server.schemas.voyage import VoyageError

Documented = dict[str, Any]


def _header(description: str, kind: str) -> Documented:
    return {"description": description, "schema": {"type": kind}}


def _final(description: str, model: type[BaseModel] = ErrorResponse, *, when: str = "always") -> Documented:
    """when: whether sending the request again is known to be in vain."""
    header = _header(f"`false`, {when}: the same request would fail again.", "string")
    return {"description": description, "model": model, "headers": {"x-should-retry": header}}


def _retryable(description: str) -> Documented:
    headers = {
        "Retry-After": _header("Seconds to wait before trying again.", "integer"),
        "retry-after-ms": _header("The same in milliseconds.", "integer"),
        "x-should-retry": _header("`true`.", "string"),
    }
    return {"description": description, "model": ErrorResponse, "headers": headers}


UNAUTHORIZED = _final("The API key is missing or wrong.", HTTPErrorResponse)
NOT_FOUND = _final("No model of that name.", HTTPErrorResponse)
INVALID = _final("The request does not fit the schema.", ValidationErrorResponse)
NOT_READY = _retryable("A model is not loaded, is shutting down, or its device thread died.")

TASK_ERRORS: dict[int | str, Documented] = {
    400: _final("No such model, or it cannot serve this request."),
    413: _final("The body is larger than the server takes.", HTTPErrorResponse),
    415: _final("The content type is not JSON.", HTTPErrorResponse),
    422: INVALID,
    429: _retryable("The queue is full."),
    500: _final("Computing failed.", when="where an input is to blame"),
    503: NOT_READY,
    504: {"description": "Not answered within the request's `timeout`.", "model": ErrorResponse},
}

NAME_IN_USE: Documented = {
    "description": "A model of that name is served, or is being loaded, unloaded or reloaded.",
    "model": ErrorResponse,
}
LOAD_ERRORS: dict[int | str, Documented] = {
    400: _final("The model cannot be served."),
    **{status: TASK_ERRORS[status] for status in (413, 415)},
    409: NAME_IN_USE,
    422: INVALID,
    503: NOT_READY,
    507: {"description": "There is no memory for the model.", "model": ErrorResponse},
}

# The routes of Text Embeddings Inference tell apart what its clients do.
TEI_ERRORS: dict[int | str, Documented] = {
    status: {**each, "model": TeiError}
    for status, each in {
        **TASK_ERRORS,
        400: _final("There is nothing to compute."),
        424: _final("The model cannot do that, or computing failed."),
        500: {"description": "An internal error."},
    }.items()
}

VOYAGE_ERRORS = {status: {**each, "model": VoyageError} for status, each in TASK_ERRORS.items()}


def either(
    ours: Mapping[int | str, Documented], theirs: Mapping[int | str, Documented]
) -> dict[int | str, Documented]:
    """The errors of a route whose body says whether they are ours or another dialect's."""
    return {
        **theirs,
        **{
            status: {**each, "model": each["model"] | theirs[status]["model"]}
            for status, each in ours.items()
        },
    }
