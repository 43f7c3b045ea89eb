"""Encode and send responses without a server."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Message

from infinity_emb.scheduling.fair_threads import FairThreads
from infinity_emb.server.requests.memory import MemoryBudget
from infinity_emb.server.responses.sliced import SlicedResponse
from tests.support.event_loop import run


async def send_response(response: Response, *, max_bytes: int = 2**30) -> list[Message]:
    """Encode and send a response as the server does, and return what is sent."""
    messages: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        messages.append(message)

    if isinstance(response, SlicedResponse):
        threads = FairThreads(1, "test")
        with MemoryBudget(max_bytes).open("client") as held:
            await response.encode(threads, held)
            assert held.num_bytes == response.num_bytes
        threads.close()
    await response({"type": "http"}, receive, send)
    return messages


def read_body(response: Response) -> bytes:
    """Return the body of a response."""
    return b"".join(message.get("body", b"") for message in run(send_response(response)))
