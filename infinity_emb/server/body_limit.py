"""Reads a request body up to a limit, by its declared length and while it streams in.

Knows nothing of what the body means.
"""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope


async def read_body(request: Request, max_body_bytes: int) -> bytes:
    """The whole body.

    Raises HTTPException 413 for more than `max_body_bytes`, before reading where the length is declared;
    ClientDisconnect where the client hangs up before its end.
    """
    if declared_bytes(request.scope) > max_body_bytes:
        raise too_large(max_body_bytes)
    chunks: list[bytes] = []
    num_bytes = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        num_bytes += len(chunk)
        if num_bytes > max_body_bytes:
            raise too_large(max_body_bytes)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def declared_bytes(scope: Scope) -> int:
    """The content length of a request; 0 where it declares none."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and len(value) < 20:
            return int(value)
    return 0


def too_large(max_body_bytes: int) -> HTTPException:
    """The 413 with its limit and the way out."""
    return HTTPException(
        413,
        f"the request body has more than {max_body_bytes} bytes; send fewer inputs in one request, or start"
        " the server with a larger --max-body-bytes",
    )
