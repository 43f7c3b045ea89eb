"""Offers to change the protocol are ignored: each request is read to its end and answered once.

Raw bytes against a server over real sockets. httptools takes the body of such a request for the next one.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support.server_on_a_thread import (
    BODY,
    HEAD,
    HEALTH,
    REQUEST,
    ServerOnAThread,
    StartHere,
    answers_of,
    connect,
    read_all,
    statuses,
)

LAST = b"GET /ready HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"
SMUGGLED = b"GET /metrics HTTP/1.1\r\nhost: test\r\n\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n" + b"".join(
    b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:6], BODY[6:], b"")
)
SIZED = b"content-length: %d\r\n\r\n" % len(BODY) + BODY
OFFERS = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n",
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    "lower case": b"connection: upgrade\r\nupgrade: h2c\r\n",
    "several tokens": b"Connection: keep-alive, uPGRADE\r\nUpgrade: TLS/1.0, h2c\r\n",
    "several lines": b"Connection: keep-alive\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nUPGRADE: x\r\n",
    "empty": b"Connection: Upgrade\r\nUpgrade:\r\n",
    "without connection": b"Upgrade: h2c\r\n",
    "without upgrade": b"Connection: Upgrade\r\n",
}


@pytest.fixture
def server(start_here: StartHere) -> ServerOnAThread:
    return start_here()


def splits_of(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Return the two parts of each split near a border that a parser may fall over."""
    for at in sorted({data.find(b"\r\n\r\n") + extra for extra in range(-2, 12)} | {len(data) - 1}):
        if 0 < at < len(data):
            yield data[:at], data[at:]


def send_parts(client: socket.socket, *parts: bytes) -> bytes:
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for part in parts:
        client.sendall(part)
        time.sleep(0.02)  # so that the server reads each on its own
    return read_all(client)


@pytest.mark.parametrize("body", [SIZED, CHUNKED], ids=["sized", "chunked"])
@pytest.mark.parametrize("offer", list(OFFERS.values()), ids=list(OFFERS))
def test_a_request_that_offers_an_upgrade_is_computed(
    offer: bytes, body: bytes, server: ServerOnAThread
) -> None:
    """Java's HttpClient offers h2c with each request; its bodies were lost."""
    with connect(server, HEAD + offer + body + LAST) as client:
        (status, answer), last = answers_of(read_all(client))
    assert status == 200
    assert len(json.loads(answer)["data"]) == 1
    assert last[0] == 200


@pytest.mark.parametrize("body", [SIZED, CHUNKED], ids=["sized", "chunked"])
def test_requests_around_it_are_answered_in_order(body: bytes, server: ServerOnAThread) -> None:
    offering = HEAD + OFFERS["h2c"] + body
    with connect(server, HEALTH + offering + offering + REQUEST + HEALTH + offering + LAST) as client:
        answers = answers_of(read_all(client))
    assert [status for status, _ in answers] == [200] * 7
    assert [b"embedding" in answer for _, answer in answers] == [False, True, True, True, False, True, False]


@pytest.mark.parametrize("body", [SIZED, CHUNKED], ids=["sized", "chunked"])
def test_it_may_arrive_in_parts(body: bytes, server: ServerOnAThread) -> None:
    request = HEAD + OFFERS["h2c"] + body
    for first, second in splits_of(request):
        with connect(server) as client:
            assert statuses(send_parts(client, first, second + LAST)) == [200, 200], (first, second)


def test_every_byte_may_arrive_alone(server: ServerOnAThread) -> None:
    data = HEALTH + HEAD + OFFERS["several lines"] + CHUNKED + LAST
    with connect(server) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(data)):
            client.sendall(data[at : at + 1])
            time.sleep(0.001)
        assert statuses(read_all(client)) == [200, 200, 200]


@pytest.mark.parametrize("offer", list(OFFERS.values()), ids=list(OFFERS))
@pytest.mark.parametrize("padding", [b"", b"\r\n" * 40_000], ids=["plain", "padded"])
def test_a_body_is_never_a_request(offer: bytes, padding: bytes, server: ServerOnAThread) -> None:
    """A part of a body in a later packet was answered as a request, also to another client of a proxy."""
    body = padding + SMUGGLED
    head = HEAD + offer + b"content-length: %d\r\n\r\n" % len(body)
    with connect(server) as client:
        received = send_parts(client, head, body, LAST)
    assert statuses(received) == [422, 200]
    assert b"# HELP" not in received


def test_a_request_without_a_body_may_offer_it(server: ServerOnAThread) -> None:
    request = HEALTH[:-2] + OFFERS["websocket"] + b"\r\n"
    with connect(server, request + request + LAST) as client:
        assert statuses(read_all(client)) == [200, 200, 200]


def test_it_may_close_the_connection(server: ServerOnAThread) -> None:
    offer = b"Connection: close, Upgrade\r\nUpgrade: h2c\r\n"
    with connect(server, HEAD + offer + SIZED + HEALTH) as client:
        assert statuses(read_all(client)) == [200]


def test_http_1_0_may_offer_it(server: ServerOnAThread) -> None:
    with connect(server, HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + OFFERS["h2c"] + SIZED) as client:
        assert statuses(read_all(client)) == [200]


@pytest.mark.parametrize("target", [b"test:443", b"/health", b"*", b"http://test/health"])
def test_connect_is_refused_and_nothing_behind_it_is_read(target: bytes, server: ServerOnAThread) -> None:
    head = b"CONNECT " + target + b" HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n"
    for offer in (b"", OFFERS["h2c"]):
        with connect(server, head + offer + b"\r\n" + SMUGGLED) as client:
            received = read_all(client)
        assert received.startswith(b"HTTP/1.1 400 ")
        assert received.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "framing",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"content-length: 5\r\ncontent-length: 5\r\n",
        b"transfer-encoding: gzip\r\n",
        b"transfer-encoding:\r\ncontent-length: 5\r\n",
        b"content-length: +5\r\n",
    ],
)
def test_ambiguous_bodies_are_refused_with_an_offer_too(framing: bytes, server: ServerOnAThread) -> None:
    for offer in (b"", *OFFERS.values()):
        with connect(server, HEAD + offer + framing + b"\r\n0\r\n\r\n" + HEALTH) as client:
            received = read_all(client)
        assert received.startswith(b"HTTP/1.1 400 "), offer
        assert received.count(b"HTTP/1.1") == 1
