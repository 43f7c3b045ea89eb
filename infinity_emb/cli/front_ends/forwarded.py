"""Run the requests that a front end forwards in the app of the engine process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from starlette.types import ASGIApp, Message

from infinity_emb.cli.front_ends.forwarding import pack_message, unpack_message, unpack_scope
from infinity_emb.cli.front_ends.frames import Frame
from infinity_emb.cli.front_ends.link import Link

logger = logging.getLogger("infinity_emb")


class ForwardedRequests:
    """The forwarded requests of one front end.

    app: of the engine process.
    receivers: what takes a frame, by the kind of the frame.
    """

    def __init__(self, link: Link, app: ASGIApp) -> None:
        self._link = link
        self._app = app
        self._requests: dict[int, _ForwardedRequest] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.receivers: Mapping[str, Callable[[Frame], None]] = {
            "request": self.start,
            "received": self.take,
            "sent": self.take,
            "abandoned": self.abandon,
        }

    def start(self, frame: Frame) -> None:
        """Begin to serve a request."""
        number = frame.header["id"]
        request = self._requests[number] = _ForwardedRequest(self._link, number)
        task = asyncio.ensure_future(self._run(request, frame))
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def take(self, frame: Frame) -> None:
        """Pass on what the front end has received or sent."""
        if (request := self._requests.get(frame.header["id"])) is not None:
            request.take(frame)

    def abandon(self, frame: Frame) -> None:
        """Disconnect the client of a request that the front end has given up."""
        if (request := self._requests.get(frame.header["id"])) is not None:
            request.disconnect()

    def disconnect(self) -> None:
        """Disconnect all clients, as their front end has ended."""
        for request in self._requests.values():
            request.disconnect()

    async def _run(self, request: _ForwardedRequest, frame: Frame) -> None:
        try:
            await self._app(unpack_scope(frame.header["scope"]), request.receive, request.send)
        finally:
            del self._requests[request.number]
            self._link.send({"kind": "end", "id": request.number})

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a request failed after its response had begun", exc_info=error)


class _ForwardedRequest:
    """The callables of ASGI for one request, which the front end carries out."""

    def __init__(self, link: Link, number: int) -> None:
        self.number = number
        self._link = link
        self._is_disconnected = False
        self._received: asyncio.Future[Message] | None = None
        self._sent: asyncio.Future[None] | None = None

    async def receive(self) -> Message:
        if self._is_disconnected:
            return {"type": "http.disconnect"}
        if self._received is None:
            self._received = asyncio.get_running_loop().create_future()
            self._link.send({"kind": "receive", "id": self.number})
        message = await asyncio.shield(self._received)  # a cancelled call is continued by the next
        self._received = None
        return message

    async def send(self, message: Message) -> None:
        if self._is_disconnected:
            return
        self._sent = asyncio.get_running_loop().create_future()
        header, arrays = pack_message(message)
        self._link.send({"kind": "send", "id": self.number, **header}, arrays)
        await self._sent

    def take(self, frame: Frame) -> None:
        if frame.header["kind"] == "received":
            self._receive(unpack_message(frame))
        elif self._sent is not None and not self._sent.done():
            self._sent.set_result(None)

    def disconnect(self) -> None:
        self._is_disconnected = True
        self._receive({"type": "http.disconnect"})
        if self._sent is not None and not self._sent.done():
            self._sent.set_result(None)

    def _receive(self, message: Message) -> None:
        if self._received is not None and not self._received.done():
            self._received.set_result(message)
