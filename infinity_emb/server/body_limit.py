"""Reads request bodies up to limits: of each one, by its declared length and while it streams in, and of all.

Knows nothing of what a body means.
"""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope


class BodyReader:
    """Of one app.

    max_body_bytes: of one body.
    max_total_bytes: of all that are under way. Many clients that each send slowly less than one may would
    fill the memory.
    """

    def __init__(self, *, max_body_bytes: int, max_total_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._max_total_bytes = max_total_bytes
        self.num_held_bytes = 0

    async def read(self, request: Request) -> bytes:
        """The whole body.

        Raises HTTPException 413 for one that is too large, before reading where the length is declared, and
        503 where there is no room for it now; ClientDisconnect where the client hangs up before its end.
        """
        if declared_bytes(request.scope) > self._max_body_bytes:
            raise self._too_large()
        chunks: list[bytes] = []
        num_bytes = 0
        try:
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk: bytes = message.get("body", b"")
                num_bytes += len(chunk)
                self.num_held_bytes += len(chunk)
                if num_bytes > self._max_body_bytes:
                    raise self._too_large()
                if self.num_held_bytes > self._max_total_bytes:
                    raise self._no_room()
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
        finally:
            self.num_held_bytes -= num_bytes

    def _too_large(self) -> HTTPException:
        return HTTPException(
            413,
            f"the request body has more than {self._max_body_bytes} bytes; send fewer inputs in one request,"
            " or start the server with a larger --max-body-bytes",
        )

    def _no_room(self) -> HTTPException:
        return HTTPException(
            503,
            f"the request bodies that are under way have more than {self._max_total_bytes} bytes together;"
            " try again later, or start the server with a larger --max-total-body-bytes",
        )


def declared_bytes(scope: Scope) -> int:
    """The content length of a request; 0 where it declares none."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and len(value) < 20:
            return int(value)
    return 0
