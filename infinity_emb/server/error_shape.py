"""How a dialect writes what went wrong: the seam between `errors.py` and those who know a vendor's body.

A request's schema names its shape (`TaskRequest.error_shape`), and the route notes it on the request before
anything can fail. Knows no dialect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from starlette.requests import Request
from starlette.types import Scope


class Failure(NamedTuple):
    """What went wrong, before it has a body.

    status: as the server's own dialect answers it.
    error: None for what nobody raised on purpose.
    """

    status: int
    message: str
    error: Exception | None


class ShapedError(NamedTuple):
    """A dialect's answer; headers stay those of the server's own."""

    status: int
    content: Mapping[str, object]


ErrorShape: TypeAlias = Callable[[Failure], ShapedError]


def note_shape(request: Request, shape: ErrorShape | None) -> None:
    """Errors of this request are to have that shape."""
    request.state.error_shape = shape


def shape_of(scope: Scope) -> ErrorShape | None:
    """What was noted; None for the server's own."""
    shape: ErrorShape | None = scope.get("state", {}).get("error_shape")
    return shape
