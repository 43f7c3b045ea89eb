"""The side of the engine process of requests that front ends forward."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from tests.support.event_loop import run
from tests.support.forwarding import Client, connected, hang, make_scope, start_requests, wait_until


def test_a_message_that_arrives_after_a_receive_was_cancelled_goes_to_the_next() -> None:
    """Apps give up waiting for a disconnect when they have a response."""
    received: list[Message] = []
    has_cancelled = asyncio.Event()

    async def app(_: Scope, receive: Receive, __: Send) -> None:
        waiting = asyncio.ensure_future(receive())
        await asyncio.sleep(0)  # until it waits
        waiting.cancel()
        await asyncio.wait([waiting])
        has_cancelled.set()
        received.append(await receive())

    async def main() -> None:
        async with connected(app) as world:
            client = Client(())
            request = asyncio.ensure_future(world.forwarder(make_scope(), client.receive, client.send))
            await wait_until(has_cancelled.is_set)
            client.disconnect()
            await request

    run(main())
    assert received == [{"type": "http.disconnect"}]


def test_every_request_of_a_front_end_that_ends_is_disconnected() -> None:
    async def main() -> None:
        async with connected(hang) as world:
            _, requests = await start_requests(world, 3)
            world.client.link.close()
            await wait_until(lambda: not world.requests._requests)
            await asyncio.gather(*requests)

    run(main())


def test_what_is_sent_to_a_client_that_has_disconnected_is_dropped() -> None:
    has_sent = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await hang(scope, receive, send)
        for _ in range(3):
            await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
        has_sent.set()

    async def main() -> None:
        async with connected(app) as world:
            client = Client()
            request = asyncio.ensure_future(world.forwarder(make_scope(), client.receive, client.send))
            await wait_until(lambda: world.requests._requests)
            request.cancel()
            await asyncio.wait([request])
            await wait_until(has_sent.is_set)
            assert client.sent == []

    run(main())


def test_an_app_that_fails_ends_its_request_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("out of order")

    async def main() -> None:
        async with connected(app) as world:
            client = Client()
            await world.forwarder(make_scope(), client.receive, client.send)
            assert [message["type"] for message in client.sent] == ["http.response.start"]

    run(main())
    assert "a request failed after its response had begun" in caplog.text
    assert "out of order" in caplog.text
