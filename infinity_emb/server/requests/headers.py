"""Find headers in an ASGI scope.

For a header that is absent, starlette's `Headers` takes several times as long.
"""

from __future__ import annotations

from starlette.types import Scope


def find_header(scope: Scope, wanted: bytes) -> str | None:
    """Return the first value of a header, or None. `wanted` must be lower case."""
    for name, value in scope["headers"]:
        if name == wanted:
            text: str = value.decode("latin-1")
            return text
    return None


def join_headers(scope: Scope, wanted: bytes) -> str:
    """Join all values of a header with commas; empty if there are none. Source: RFC 9110 section 5.3."""
    return ", ".join([value.decode("latin-1") for name, value in scope["headers"] if name == wanted])


def read_content_length(scope: Scope) -> int:
    """Return the declared content length, or 0 if it is missing or invalid."""
    value = find_header(scope, b"content-length") or ""
    return int(value) if value.isdecimal() and len(value) < 20 else 0
