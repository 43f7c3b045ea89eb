"""Send a request to an ASGI app of this process, without a socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message


class Response(NamedTuple):
    """A response as a whole."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


async def post_json(app: ASGIApp, path: str, content: bytes, /, **extra: Any) -> Response:
    """Send JSON and stay connected until the response has been sent.

    extra: parts of the ASGI scope, such as `state`, besides those of every request.
    """
    unread: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        if not unread:
            await asyncio.Event().wait()
        return unread.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"accept", b"application/json")],
        "client": None,
        "server": None,
        **extra,
    }
    await app(scope, receive, send)
    start, *parts = sent
    return Response(
        start["status"], dict(start["headers"]), b"".join(part.get("body", b"") for part in parts)
    )
