"""Each request gets one response, in order: bad requests behind good ones, closed sides,
clients that have gone.

Raw bytes against a server over real sockets.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time

import httpx
import pytest
from fastapi import FastAPI

from infinity_emb.cli import descriptors, ordered_protocol
from infinity_emb.cli.ordered_protocol import MAX_PARSED_BYTES, OrderedProtocol
from tests.support.server_on_a_thread import (
    BODY,
    HEAD,
    HEALTH,
    REQUEST,
    ServerOnAThread,
    StartHere,
    answers_of,
    connect,
    error_of,
    read_all,
    statuses,
    wait_until,
)
from tests.support.tiny_server import build_debug_app

LAST = b"GET /ready HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"
BAD_LINE = b"GET  HTTP\r\n\r\n"
NO_HOST = b"GET /health HTTP/1.1\r\n\r\n"
EXPECTS = HEAD + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(BODY)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.fixture
def server(start_here: StartHere) -> ServerOnAThread:
    return start_here()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"host: a\r\nhost: a\r\n", 400),
        (b"", 400),
        (b"host: a b\r\n", 400),
        (b"host: a\r\nexpect: 200-ok\r\ncontent-length: 5\r\n", 417),
        (b"host: a\r\ntransfer-encoding: gzip, chunked\r\n", 501),
        (b"host: a\r\ntransfer-encoding: chunked, chunked\r\n", 400),
        (b"host: a\r\nno-colon\r\n", 400),
        (b"host : a\r\n", 400),
    ],
)
def test_a_head_that_cannot_be_served_is_refused_and_nothing_behind_it_is_read(
    head: bytes, status: int, server: ServerOnAThread
) -> None:
    with connect(server, b"POST /embeddings HTTP/1.1\r\n" + head + b"\r\n" + HEALTH) as client:
        received = read_all(client)
    assert error_of(received, status)
    assert received.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("bad", [BAD_LINE, NO_HOST, HEAD + b"x: " + b"y" * 200_000])
def test_a_bad_request_does_not_take_the_response_of_the_one_before(
    bad: bytes,
    start_here: StartHere,
) -> None:
    """The error was sent at once, in place of the response that was still computed."""
    server = start_here("debug?delay_s=0.3")
    with connect(server, HEALTH + REQUEST + bad) as client:
        received = read_all(client)
    assert [status for status, _ in answers_of(received)[:2]] == [200, 200]
    assert answers_of(received)[2][0] in (400, 431)
    assert received.count(b"HTTP/1.1") == 3


def test_a_body_that_breaks_is_refused_behind_the_response_before(start_here: StartHere) -> None:
    server = start_here("debug?delay_s=0.3")
    broken = HEAD + b"transfer-encoding: chunked\r\n\r\nnot a size\r\n"
    with connect(server, REQUEST + broken) as client:
        assert statuses(read_all(client)) == [200, 400]
    with connect(server, broken) as client:
        assert statuses(read_all(client)) == [400]


def test_a_refused_client_that_goes_on_sending_reads_why(server: ServerOnAThread) -> None:
    """Closing at once made the response a reset, as bytes lay unread."""
    with connect(server, NO_HOST) as client:
        for _ in range(20):
            with contextlib.suppress(ConnectionError):
                client.sendall(b"x" * 1000)
            time.sleep(0.01)
        assert error_of(read_all(client), 400)


def test_trailers_are_not_headers(start_here: StartHere) -> None:
    """A proxy that removes a header from requests does not look at trailers."""
    server = start_here(app=keyed())
    chunked = b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
    with connect(server, HEAD + chunked + b"authorization: Bearer api-secret\r\n\r\n" + LAST) as client:
        assert statuses(read_all(client))[0] == 401


def keyed() -> FastAPI:
    return build_debug_app(api_key="api-secret")


@pytest.mark.parametrize(
    "request_bytes",
    [HEALTH, REQUEST, HEALTH + REQUEST + HEALTH, REQUEST.replace(b"host", b"connection: close\r\nhost")],
)
@pytest.mark.parametrize("delay_s", [0, 0.3])
def test_a_client_that_has_closed_its_side_gets_its_responses(
    request_bytes: bytes,
    delay_s: float,
    start_here: StartHere,
) -> None:
    """`printf … | nc -N` does so."""
    server = start_here(f"debug?delay_s={delay_s}")
    with connect(server, request_bytes) as client:
        client.shutdown(socket.SHUT_WR)
        received = read_all(client)
    assert statuses(received) == [200] * request_bytes.count(b" HTTP/1.1")
    wait_until(lambda: not server.server_state.connections)


def test_a_long_wait_with_a_closed_side_is_asked_for_a_sign_of_life(start_here: StartHere) -> None:
    server = start_here("debug?delay_s=3")
    with connect(server, REQUEST) as client:
        client.shutdown(socket.SHUT_WR)
        received = read_all(client)
    assert received.startswith(CONTINUE)
    assert statuses(received.removeprefix(CONTINUE)) == [200]


@pytest.mark.parametrize("part", [HEAD, REQUEST[:-1], HEAD + b"content-length: 17\r\n\r\n"])
def test_half_a_request_with_a_closed_side_is_dropped(part: bytes, server: ServerOnAThread) -> None:
    for before in (b"", REQUEST):
        with connect(server, before + part) as client:
            client.shutdown(socket.SHUT_WR)
            assert statuses(read_all(client)) == [200] * bool(before)
    wait_until(lambda: not server.server_state.connections)


def test_a_client_that_has_gone_stops_its_requests(
    start_here: StartHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordered_protocol, "GIVE_UP_AFTER_S", 0.5)
    server = start_here("debug?delay_s=8")
    for version in (b"1.1", b"1.0"):
        with connect(server, REQUEST.replace(b"HTTP/1.1", b"HTTP/" + version)):
            wait_until(lambda: bool(server.server_state.tasks))
        wait_until(lambda: not server.server_state.connections)
        wait_until(lambda: not server.server_state.tasks)
        assert not server.server_state.total_requests, "neither was answered"


def test_a_client_that_hangs_up_on_many_requests_leaves_no_traceback(
    start_here: StartHere,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first response went to a closed transport, which raised."""
    caplog.set_level(logging.INFO)
    server = start_here("debug?delay_s=0.05")
    for _ in range(5):
        client = connect(server, REQUEST * 20)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        time.sleep(0.02)
        client.close()
    wait_until(lambda: not server.server_state.connections)
    wait_until(lambda: not server.server_state.tasks)
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []


def test_many_requests_at_once_are_answered_in_order(server: ServerOnAThread) -> None:
    with connect(server, (REQUEST + HEALTH) * 50 + LAST) as client:
        answers = answers_of(read_all(client))
    assert [status for status, _ in answers] == [200] * 101
    assert [b"embedding" in answer for _, answer in answers] == [True, False] * 50 + [False]


def test_of_many_requests_at_once_few_are_parsed_before_the_first_is_answered(
    start_here: StartHere,
) -> None:
    """All were, in one turn of the event loop for each connection, and each answer let thousands more in."""
    server = start_here("debug?delay_s=1")
    with connect(server, REQUEST, HEALTH * 6000) as client:
        wait_until(lambda: any(getattr(each, "unparsed", b"") for each in server.server_state.connections))
        [connection] = server.server_state.connections
        assert isinstance(connection, OrderedProtocol)
        assert len(connection.pipeline) <= MAX_PARSED_BYTES // len(HEALTH) + 1
        assert len(connection.unparsed) < 2**19
        client.sendall(LAST)
        assert statuses(read_all(client)) == [200] * 6002


def test_a_body_that_is_waited_for_arrives_after_100_continue(server: ServerOnAThread) -> None:
    with connect(server, EXPECTS) as client:
        assert client.recv(2**16) == CONTINUE
        client.sendall(BODY + LAST)
        assert statuses(read_all(client)) == [200, 200]


def test_a_body_that_comes_unasked_keeps_the_connection_too(server: ServerOnAThread) -> None:
    with connect(server, EXPECTS + BODY + LAST) as client:
        assert statuses(read_all(client).removeprefix(CONTINUE)) == [200, 200]


def test_a_client_refused_before_its_body_cannot_send_another_request(start_here: StartHere) -> None:
    """It may leave the body out, and what it sends next would be read as that body; or as a request."""
    server = start_here(app=keyed())
    with connect(server, EXPECTS) as client:
        received = client.recv(2**16)
        client.sendall(HEALTH)
        with contextlib.suppress(ConnectionError):
            received += read_all(client)
    assert error_of(received, 401)
    assert received.count(b"HTTP/1.1") == 1


def test_a_refused_body_is_not_asked_for(start_here: StartHere, caplog: pytest.LogCaptureFixture) -> None:
    """Its `100 Continue` was written after the end of what is sent, which raised in the event loop."""
    server = start_here()
    head = HEAD + b"expect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n"
    with connect(server, head + b"not a size\r\n") as client:
        assert error_of(read_all(client), 400)
    wait_until(lambda: not server.server_state.tasks)
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.WARNING] == []


def test_http_1_0_gets_no_interim_response(server: ServerOnAThread) -> None:
    with connect(server, EXPECTS.replace(b"HTTP/1.1", b"HTTP/1.0")) as client:
        time.sleep(0.1)
        client.sendall(BODY)
        assert statuses(read_all(client)) == [200]


def test_an_idle_connection_is_kept_for_longer_than_proxies_keep_theirs(start_here: StartHere) -> None:
    """It was closed after 5 s; a proxy that had just sent a request on it answered 502."""
    assert start_here().config.timeout_keep_alive > 90
    server = start_here(keep_alive_s=1)
    with connect(server, HEALTH) as client:
        assert client.recv(2**16).startswith(b"HTTP/1.1 200 ")
        assert client.recv(2**16) == b"", "closed after a second"


def test_a_server_that_stops_does_not_wait_for_idle_connections(start_here: StartHere) -> None:
    server = start_here()
    with connect(server, HEALTH) as client:
        assert client.recv(2**16).startswith(b"HTTP/1.1 200 ")
        server.should_exit = True
        server.thread.join(20)
        assert not server.thread.is_alive()


def test_probes_are_answered_beyond_the_limit_of_connections(
    start_here: StartHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors, "MAX_EXTRA", 64)
    server = start_here(max_connections=2)
    others = [connect(server) for _ in range(150)]
    wait_until(lambda: len(server.server_state.connections) >= 60)
    host, port = server.address
    for _ in range(5):
        assert httpx.get(f"http://{host}:{port}/health").status_code == 200
    with connect(server, REQUEST) as client:
        assert "all 2 connections" in error_of(read_all(client), 503)
    told = [read_all(other) for other in others[2 : -descriptors.MAX_EXTRA]]
    assert all("all 2 connections" in error_of(each, 503) for each in told)
    for other in others:
        other.close()
    wait_until(lambda: not server.server_state.connections)
    with connect(server, REQUEST + LAST) as client:
        assert statuses(read_all(client)) == [200, 200]


@pytest.mark.parametrize("max_extra", [1, 8, 64])
def test_a_burst_beyond_the_limit_of_connections_gets_responses_that_can_be_read(
    start_here: StartHere, monkeypatch: pytest.MonkeyPatch, max_extra: int
) -> None:
    """Connections were closed with their requests unread, which resets them and may lose the response."""
    monkeypatch.setattr(descriptors, "MAX_EXTRA", max_extra)
    server = start_here(max_connections=2)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connect(server))
        wait_until(lambda: len(server.server_state.connections) == 2)
        loop = next(iter(server.server_state.connections)).loop
        loop.call_soon_threadsafe(time.sleep, 0.3)
        clients = [stack.enter_context(connect(server, REQUEST)) for _ in range(100)]
        time.sleep(0.5)  # nobody reads a response before all have been sent
        for client in clients:
            response = read_all(client)
            assert "all 2 connections" in error_of(response, 503)
            assert b"\r\nretry-after: 1\r\n" in response.lower()


def test_refused_connections_make_room_before_those_that_have_not_been_read(
    start_here: StartHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe that came before a flood of requests was closed for them."""
    monkeypatch.setattr(descriptors, "MAX_EXTRA", 4)
    server = start_here(max_connections=2)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connect(server))
        wait_until(lambda: len(server.server_state.connections) == 2)
        probe = stack.enter_context(connect(server, HEALTH[:-2]))
        wait_until(lambda: len(server.server_state.connections) == 3)
        for _ in range(20):
            client = stack.enter_context(connect(server, REQUEST))
            assert client.recv(2**16).startswith(b"HTTP/1.1 503 ")
        probe.sendall(HEALTH[-2:])
        assert statuses(read_all(probe)) == [200]
