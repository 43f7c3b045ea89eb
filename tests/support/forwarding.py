"""A front end that forwards requests, and the engine process that gets them, in one event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infinity_emb.cli.front_ends.client import EngineClient
from infinity_emb.cli.front_ends.forwarded import ForwardedRequests
from infinity_emb.cli.front_ends.forwarding import Forwarder
from infinity_emb.cli.front_ends.frames import Frame
from infinity_emb.cli.front_ends.link import Link
from tests.support.event_loop import PATIENCE_S

MEGABYTE = 2**20


class Client:
    """A client of a front end: what it sends and gets."""

    def __init__(self, body: bytes | Iterable[bytes] = b"") -> None:
        parts = [body] if isinstance(body, bytes) else list(body)
        self._to_receive: asyncio.Queue[Message] = asyncio.Queue()
        for number, part in enumerate(parts, 1):
            self._to_receive.put_nowait(
                {"type": "http.request", "body": part, "more_body": number < len(parts)}
            )
        self.sent: list[Message] = []
        self.reads = asyncio.Event()
        self.reads.set()

    async def receive(self) -> Message:
        return await self._to_receive.get()

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        self.sent.append(message)

    def disconnect(self) -> None:
        self._to_receive.put_nowait({"type": "http.disconnect"})

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


class World(NamedTuple):
    """A front end and the engine process, in one event loop."""

    client: EngineClient
    forwarder: Forwarder
    engine_link: Link
    requests: ForwardedRequests


@asynccontextmanager
async def connected(app: ASGIApp) -> AsyncIterator[World]:
    client = EngineClient()
    forwarder = Forwarder(client)

    def take(frame: Frame) -> None:
        requests.receivers[frame.header["kind"]](frame)

    link = Link(take, on_lost=lambda: requests.disconnect(), reads_always=False)
    requests = ForwardedRequests(link, app)
    ours, theirs = socket.socketpair()
    await client.link.connect(ours)
    await link.connect(theirs)
    try:
        yield World(client, forwarder, link, requests)
    finally:
        client.link.close()
        link.close()
        await wait_until(lambda: client.link.is_lost and link.is_lost)
        await wait_until(lambda: not requests._tasks)


async def start_requests(world: World, number: int) -> tuple[list[Client], list[asyncio.Task[None]]]:
    """Forward requests to an app that hangs, and wait until it has them all."""
    clients = [Client() for _ in range(number)]
    requests = [
        asyncio.ensure_future(world.forwarder(make_scope(), each.receive, each.send)) for each in clients
    ]
    await wait_until(lambda: len(world.requests._requests) == number)
    return clients, requests


async def wait_until(is_true: Any) -> None:
    async def wait() -> None:
        while not is_true():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(wait(), PATIENCE_S)


def make_scope(method: str = "POST", path: str = "/embeddings", **values: Any) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [],
        "client": ("192.0.2.7", 4711),
        "server": ("127.0.0.1", 7997),
        "state": {},
        **values,
    }


async def read_body(receive: Receive) -> bytes:
    body, has_more = b"", True
    while has_more:
        message = await receive()
        body += message.get("body", b"")
        has_more = message.get("more_body", False)
    return body


async def echo(_: Scope, receive: Receive, send: Send) -> None:
    """Send the body back, in parts of a megabyte."""
    body = await read_body(receive)
    await send({"type": "http.response.start", "status": 201, "headers": [(b"x-size", b"%d" % len(body))]})
    for start in range(0, len(body), MEGABYTE):
        part = body[start : start + MEGABYTE]
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body"})


async def hang(_: Scope, receive: Receive, __: Send) -> None:
    """Wait for the client to disconnect."""
    while (await receive())["type"] != "http.disconnect":
        pass
