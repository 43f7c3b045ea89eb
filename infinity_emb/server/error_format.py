"""The interface between error handlers and the error formats of dialects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from starlette.types import Scope


class Failure(NamedTuple):
    """An error before it has a body.

    status: the status that the server's own format uses.
    error: None for an unexpected exception, whose text clients must not see.
    """

    status: int
    message: str
    error: Exception | None


class FormattedError(NamedTuple):
    """Status and body of an error response; the headers are the same in every format."""

    status: int
    content: Mapping[str, object]


ErrorFormat: TypeAlias = Callable[[Failure], FormattedError]


class ErrorContext(NamedTuple):
    """Properties of a request form that error handlers need.

    format: None for the server's own format.
    input_field: the field that holds the inputs, reported as `param`.
    """

    format: ErrorFormat | None = None
    input_field: str = "input"


_DEFAULT = ErrorContext()


def set_error_context(scope: Scope, context: ErrorContext) -> None:
    """Set the context of a request's errors."""
    scope.setdefault("state", {})["error_context"] = context


def get_error_context(scope: Scope) -> ErrorContext:
    """Return the context that was set, or the server's own."""
    context: ErrorContext = scope.get("state", {}).get("error_context", _DEFAULT)
    return context
