"""The error answers of the routes, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from infinity_emb.server.schemas.errors import ErrorResponse, HTTPErrorResponse, ValidationErrorResponse

Documented = dict[str, Any]


def _documented(description: str, model: type[BaseModel] = ErrorResponse) -> Documented:
    return {"model": model, "description": description}


def _retryable(description: str) -> Documented:
    header = {"description": "Seconds to wait before trying again.", "schema": {"type": "integer"}}
    return {**_documented(description), "headers": {"Retry-After": header}}


UNAUTHORIZED = _documented("The API key is missing or wrong.", HTTPErrorResponse)
NOT_FOUND = _documented("No model of that name.", HTTPErrorResponse)
INVALID = _documented("The request does not fit the schema.", ValidationErrorResponse)
NOT_READY = _retryable("A model is not loaded, is shutting down, or its device thread died.")

TASK_ERRORS: dict[int | str, Documented] = {
    400: _documented("No such model, or it cannot serve this request."),
    413: _documented("The body is larger than the server takes.", HTTPErrorResponse),
    415: _documented("The content type is not JSON.", HTTPErrorResponse),
    422: INVALID,
    429: _retryable("The queue is full."),
    500: _documented("Computing failed."),
    503: NOT_READY,
}
