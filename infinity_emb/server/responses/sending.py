"""Send responses, and tell when clients have read them."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from infinity_emb.server.responses.sliced import SlicedResponse

# What a connection may buffer without waiting; uvicorn's own threshold.
MAX_BUFFERED_BYTES = 2**16


async def send_response(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Send a response; return when the client has read all of it but MAX_BUFFERED_BYTES.

    The end of a large response is sent by itself, for which a server waits until the rest has left.
    """
    if isinstance(response, SlicedResponse) or count_body_bytes(response) <= MAX_BUFFERED_BYTES:
        await response(scope, receive, send)
        return

    async def send_without_end(message: Message) -> None:
        is_body = message["type"] == "http.response.body"
        await send({**message, "more_body": True} if is_body else message)

    await response(scope, receive, send_without_end)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def count_body_bytes(response: Response) -> int:
    """Return the size of a body that is in memory; 0 for a file."""
    return response.num_bytes if isinstance(response, SlicedResponse) else len(getattr(response, "body", b""))
