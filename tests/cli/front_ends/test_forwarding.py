"""Requests that a front end forwards: what the app of the engine process gets, and what the client gets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import orjson
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infinity_emb.cli.front_ends import forwarding
from infinity_emb.cli.front_ends.forwarding import MAX_PEEKED_BYTES, ForwardingMiddleware
from infinity_emb.cli.front_ends.shared_models import LocalModels
from infinity_emb.engine.array import AsyncEngineArray
from tests.support.event_loop import PATIENCE_S, run
from tests.support.fake_engines import fake_engine
from tests.support.forwarding import (
    MEGABYTE,
    Client,
    connected,
    echo,
    hang,
    make_scope,
    read_body,
    start_requests,
    wait_until,
)


def test_the_app_gets_the_request_as_the_client_sent_it() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await echo(scope, receive, send)

    sent = make_scope(
        path="/a b/ä",
        raw_path=b"/a%20b/%C3%A4",
        query_string=b"q=%ff&q=\xff",
        root_path="/proxy",
        headers=[
            (b"x-twice", b"1"),
            (b"x-twice", b"2"),
            (b"x-bytes", bytes(range(128, 256))),
            (b"x-empty", b""),
        ],
    )

    async def main() -> None:
        async with connected(app) as world:
            await world.forwarder(sent, Client().receive, Client().send)

    run(main())
    assert seen == [sent]


@pytest.mark.parametrize("missing", ["client", "server", "raw_path"])
def test_what_a_server_does_not_know_about_a_request_stays_unknown(missing: str) -> None:
    sent = {name: value for name, value in make_scope().items() if name != missing}
    unpacked = forwarding.unpack_scope(json.loads(orjson.dumps(forwarding.pack_scope(sent))))
    assert unpacked.get(missing) is None
    assert {name: unpacked[name] for name in sent} == sent


def test_the_client_gets_every_header_of_the_response() -> None:
    headers = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"x-bytes", b"\xe4\xff")]

    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": headers})
        await send({"type": "http.response.body", "body": b"not here"})

    async def main() -> None:
        async with connected(app) as world:
            client = Client()
            await world.forwarder(make_scope(), client.receive, client.send)
            assert (client.status, client.sent[0]["headers"], client.body) == (404, headers, b"not here")

    run(main())


@pytest.mark.parametrize("sizes", [[0], [1], [0, 3, 0], [7 * MEGABYTE + 1], [100_000] * 90])
def test_bodies_of_every_size_arrive_whole_in_both_directions(sizes: list[int]) -> None:
    parts = [bytes([number % 251]) * size for number, size in enumerate(sizes)]

    async def main() -> None:
        async with connected(echo) as world:
            client = Client(parts)
            await world.forwarder(make_scope(), client.receive, client.send)
            assert client.sent[0]["headers"] == [(b"x-size", b"%d" % sum(sizes))]
            assert client.body == b"".join(parts)

    run(main())


def test_requests_that_are_forwarded_at_the_same_time_keep_their_own_bodies() -> None:
    async def main() -> None:
        async with connected(echo) as world:
            clients = [Client([bytes([number]) * 300_000] * 5) for number in range(20)]
            await asyncio.gather(
                *(world.forwarder(make_scope(), each.receive, each.send) for each in clients)
            )
            for number, client in enumerate(clients):
                assert client.body == bytes([number]) * 1_500_000

    run(main())


def test_the_app_waits_for_a_client_that_does_not_read() -> None:
    num_sent = 0

    async def app(_: Scope, __: Receive, send: Send) -> None:
        nonlocal num_sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _number in range(10):
            await send({"type": "http.response.body", "body": bytes(MEGABYTE), "more_body": True})
            num_sent += 1
        await send({"type": "http.response.body"})

    async def main() -> None:
        async with connected(app) as world:
            client = Client()
            client.reads.clear()
            request = asyncio.ensure_future(world.forwarder(make_scope(), client.receive, client.send))
            await wait_until(lambda: world.requests._requests)
            await asyncio.sleep(0.1)
            assert num_sent == 0
            client.reads.set()
            await request
            assert len(client.body) == 10 * MEGABYTE

    run(main())


def test_the_app_is_told_that_a_client_has_disconnected() -> None:
    async def main() -> None:
        async with connected(hang) as world:
            client = Client()
            request = asyncio.ensure_future(world.forwarder(make_scope(), client.receive, client.send))
            await wait_until(lambda: world.requests._requests)
            client.disconnect()
            await request
            assert client.sent == []
            assert not world.requests._requests

    run(main())


@pytest.mark.parametrize("waits_for", ["receive", "send"])
def test_the_app_is_told_that_a_front_end_has_cancelled_a_request(waits_for: str) -> None:
    """Its call waited until the front end ended, with all that the request held."""
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if waits_for == "send":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await hang(scope, receive, send)
        ended.set()

    async def main() -> None:
        async with connected(app) as world:
            client = Client()
            if waits_for == "send":
                client.reads.clear()
            request = asyncio.ensure_future(world.forwarder(make_scope(), client.receive, client.send))
            await wait_until(lambda: world.requests._requests)
            await asyncio.sleep(0.01)
            request.cancel()
            await asyncio.wait([request])
            await asyncio.wait_for(ended.wait(), PATIENCE_S)
            await wait_until(lambda: not world.requests._requests)

    run(main())


def test_nothing_is_sent_after_the_end_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request was given up after its end."""
    kinds: list[str] = []

    async def main() -> None:
        async with connected(echo) as world:
            send = world.client.link.send

            def note(header: dict[str, Any], *arrays: Any) -> None:
                kinds.append(header["kind"])
                send(header, *arrays)

            monkeypatch.setattr(world.client.link, "send", note)
            client = Client(b"abc")
            await world.forwarder(make_scope(), client.receive, client.send)

    run(main())
    assert kinds == ["request", "received", "sent", "sent", "sent"]


def test_the_app_is_told_that_a_response_could_not_be_sent() -> None:
    async def fail(_: Message) -> None:
        raise OSError("the connection is closed")

    async def main() -> None:
        async with connected(echo) as world:
            with pytest.raises(OSError, match="the connection is closed"):
                await world.forwarder(make_scope(), Client(b"abc").receive, fail)
            await wait_until(lambda: not world.requests._requests)

    run(main())


def test_a_request_to_an_engine_process_that_has_ended_gets_503() -> None:
    async def main() -> None:
        async with connected(echo) as world:
            world.engine_link.close()
            await wait_until(lambda: world.client.link.is_lost)
            client = Client()
            await world.forwarder(make_scope(), client.receive, client.send)
            assert client.status == 503
            assert "the engine process has ended" in json.loads(client.body)["error"]["message"]

    run(main())


def test_requests_that_wait_for_an_engine_process_that_ends_get_503() -> None:
    async def main() -> None:
        async with connected(hang) as world:
            clients, requests = await start_requests(world, 3)
            world.engine_link.close()
            await asyncio.gather(*requests)
            assert [client.status for client in clients] == [503] * 3

    run(main())


def test_requests_that_are_not_finished_when_the_front_end_must_end_get_503() -> None:
    async def main() -> None:
        async with connected(hang) as world:
            clients, requests = await start_requests(world, 3)
            for abort in world.client.on_abort_callbacks:
                abort()
            await asyncio.gather(*requests)
            assert [client.status for client in clients] == [503] * 3

    run(main())


def test_a_response_is_cut_off_if_the_engine_process_ends_in_its_middle() -> None:
    """The server closes the connection: a second status would be part of the body."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await hang(scope, receive, send)

    async def main() -> None:
        async with connected(app) as world:
            client = Client()
            request = asyncio.ensure_future(world.forwarder(make_scope(), client.receive, client.send))
            await wait_until(lambda: client.sent)
            world.engine_link.close()
            await request
            assert [message["type"] for message in client.sent] == ["http.response.start"]

    run(main())


def test_a_probe_gets_503_if_the_engine_process_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "PROBE_TIMEOUT_S", 0.05)
    goes_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await goes_on.wait()
        await echo(scope, receive, send)

    async def main() -> None:
        async with connected(app) as world:
            client = Client()
            await world.forwarder(make_scope("GET", "/health"), client.receive, client.send)
            assert client.status == 503
            assert "does not respond" in json.loads(client.body)["error"]["message"]
            goes_on.set()
            await wait_until(lambda: not world.requests._requests)  # its response goes nowhere
            other = Client(b"abc")
            await world.forwarder(make_scope(), other.receive, other.send)
            assert other.body == b"abc"

    run(main())


async def send_to_server(
    body: bytes, *, are_all: bool = False, prefix: str = "", **values: Any
) -> tuple[str, bytes]:
    """Return which process answers a request to a server with a model `here`, and the body that it got."""

    def answer(name: bytes) -> ASGIApp:
        async def app(_: Scope, receive: Receive, send: Send) -> None:
            received = await read_body(receive)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": name + b" " + received})

        return app

    models = LocalModels(
        AsyncEngineArray([fake_engine(served_model_name="here", served_model_aliases=("also here",))])
    )
    models.are_all = are_all
    async with connected(answer(b"engine")) as world:
        middleware = ForwardingMiddleware(
            answer(b"front"), client=world.client, models=models, url_prefix=prefix
        )
        half = len(body) // 2
        client = Client([body[:half], body[half:]])
        await middleware(make_scope(**values), client.receive, client.send)
    process, _, received = client.body.partition(b" ")
    return process.decode(), received


@pytest.mark.parametrize(
    ("fields", "process"),
    [
        ({"model": "here", "input": "a"}, "front"),
        ({"model": "also here", "input": "a"}, "front"),
        ({"model": "loaded later", "input": "a"}, "engine"),
        ({"input": "a"}, "engine"),
        ({"model": 5}, "engine"),
        (["no", "object"], "engine"),
        ({"model": "here", "input": "x" * MAX_PEEKED_BYTES}, "engine"),
    ],
)
def test_a_request_goes_to_the_process_that_has_the_encoder_of_its_model(fields: Any, process: str) -> None:
    body = json.dumps(fields).encode()
    assert run(send_to_server(body)) == (process, body)
    assert run(send_to_server(body, are_all=True)) == ("front", body)


def test_a_body_whose_model_cannot_be_read_is_forwarded() -> None:
    body = json.dumps({"model": "here", "input": "a"}).encode()
    assert run(send_to_server(body[:-1])) == ("engine", body[:-1])
    assert run(send_to_server(body, headers=[(b"content-encoding", b"gzip")])) == ("engine", body)


@pytest.mark.parametrize(
    ("method", "path", "process"),
    [
        ("POST", "/api/embeddings", "front"),
        ("POST", "/proxy/api/embeddings", "front"),
        ("GET", "/api/models", "engine"),
        ("HEAD", "/health", "engine"),
        ("OPTIONS", "/api/embeddings", "engine"),
        ("POST", "/api/admin/models", "engine"),
        ("POST", "/proxy/api/admin/models/x/reload", "engine"),
        ("DELETE", "/api/admin/models/x", "engine"),
        ("POST", "/api/v1/files", "engine"),
        ("POST", "/api/v1/batches/1/cancel", "engine"),
    ],
)
def test_what_concerns_the_whole_server_is_forwarded(method: str, path: str, process: str) -> None:
    root_path = "/proxy" if path.startswith("/proxy") else ""
    answer = send_to_server(b"{}", are_all=True, prefix="/api", method=method, path=path, root_path=root_path)
    assert run(answer)[0] == process
