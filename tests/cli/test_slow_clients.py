"""Clients that send slowly, never read, or come in numbers, against a server over real sockets."""

from __future__ import annotations

import concurrent.futures
import contextlib
import socket
import time
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from infinity_emb.cli import http_protocol
from infinity_emb.cli.http_protocol import MAX_HEAD_BYTES, MAX_HEADERS
from tests.support.event_loop import PATIENCE_S
from tests.support.server_on_a_thread import (
    HEAD,
    HEALTH,
    REQUEST,
    ServerOnAThread,
    StartHere,
    connect,
    error_of,
    read_all,
    statuses,
    wait_until,
)
from tests.support.tiny_server import build_debug_app, debug_args


@pytest.mark.parametrize(
    "part",
    [
        b"P",
        HEAD,
        HEAD + b"content-length: 17\r\n\r\n",
        REQUEST[:-1],
        HEAD + b"transfer-encoding: chunked\r\n\r\n3\r\n{\"i",
        b"\r\n" + HEAD,
        REQUEST[:-17] + b"x" * 16,
    ],
    ids=["byte", "head", "no body", "body", "chunk", "empty line", "other body"],
)  # fmt: skip
def test_half_a_request_is_answered_with_408_and_closed(part: bytes, start_here: StartHere) -> None:
    server = start_here(request_read_timeout_s=1)
    with connect(server, part) as client:
        assert "did not arrive within 1 s" in error_of(read_all(client), 408)
    wait_until(lambda: not server.server_state.connections)
    wait_until(lambda: not server.server_state.tasks)


def test_a_byte_now_and_then_does_not_help(start_here: StartHere) -> None:
    """Each byte of a head, and each of a body, put off every other time limit that there was."""
    server = start_here(request_read_timeout_s=1)

    def trickle(begin: bytes) -> bytes:
        with connect(server, begin) as client:
            client.settimeout(0.05)
            deadline_s = time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline_s:
                try:
                    return read_all(client)
                except TimeoutError:
                    client.sendall(b"x")
        raise AssertionError("the connection stays open")

    begins = [HEAD, HEAD + b"content-length: 9000\r\n\r\n"]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for answer in pool.map(trickle, begins):
            error_of(answer, 408)


@pytest.mark.parametrize("first", [b"", b"\r\n\r\n", REQUEST + b"\r\n"])
def test_who_asks_nothing_is_closed_without_a_word(first: bytes, start_here: StartHere) -> None:
    server = start_here(request_read_timeout_s=1, keep_alive_s=1)
    with connect(server, first) as client:
        answer = read_all(client)
    assert answer.count(b"HTTP/1.1") == bool(len(first) > 4)
    assert b" 408 " not in answer


def test_a_request_refused_before_its_body_ended_does_not_keep_the_connection(start_here: StartHere) -> None:
    app = build_debug_app(debug_args(), api_key=["secret"])
    server = start_here(app=app, request_read_timeout_s=1)
    answer = b""
    with (
        connect(server, HEAD + b"content-length: 9000\r\n\r\n") as client,
        contextlib.suppress(ConnectionError),
    ):
        client.settimeout(0.05)
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            client.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                if not (part := client.recv(2**16)):
                    break
                answer += part
    assert time.monotonic() < deadline_s
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b" 408 " not in answer


def test_a_slow_model_is_not_taken_for_a_slow_client(start_here: StartHere) -> None:
    """Neither the client that waits, nor one that has sent part of its next request meanwhile."""
    server = start_here("debug?delay_s=2.5", request_read_timeout_s=1)
    with connect(server, REQUEST, HEAD) as waiting:
        assert waiting.recv(2**16).startswith(b"HTTP/1.1 200 ")
    assert httpx.post(url_of(server), json={"input": "four"}, timeout=PATIENCE_S).status_code == 200


def url_of(server: ServerOnAThread) -> str:
    host, port = server.address
    return f"http://{host}:{port}/embeddings"


def big_answers() -> FastAPI:
    app = build_debug_app()

    @app.get("/big")
    async def big(size: int) -> Any:
        from starlette.responses import Response

        return Response(bytes(size))

    return app


def test_an_answer_that_nobody_reads_is_given_up(start_here: StartHere) -> None:
    server = start_here(app=big_answers(), response_write_timeout_s=1)
    with connect(server, b"GET /big?size=50000000 HTTP/1.1\r\nhost: test\r\n\r\n") as client:
        wait_until(lambda: bool(server.server_state.connections))
        wait_until(lambda: not server.server_state.connections)
        with contextlib.suppress(ConnectionError):
            assert len(read_all(client)) < 50_000_000


def test_an_answer_that_is_read_slowly_arrives_whole(start_here: StartHere) -> None:
    server = start_here(app=big_answers(), response_write_timeout_s=1)
    size = 12_000_000
    request = b"GET /big?size=%d HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n" % size
    with connect(server, request) as client:
        num_bytes = 0
        while part := client.recv(2**16):
            num_bytes += len(part)
            time.sleep(0.01)
    assert num_bytes > size


def test_beyond_so_many_connections_nothing_is_computed_and_probes_are_answered(
    start_here: StartHere,
) -> None:
    server = start_here(max_connections=2)
    others = [connect(server) for _ in range(2)]
    wait_until(lambda: len(server.server_state.connections) == 2)
    with connect(server, REQUEST) as client:
        assert "all 2 connections" in error_of(read_all(client), 503)
    with connect(server, b"GET /health HTTP/1.1\r\nhost: test\r\n\r\n") as client:
        assert read_all(client).startswith(b"HTTP/1.1 200 ")
    wait_until(lambda: len(server.server_state.connections) == 2)
    others.pop().close()
    wait_until(lambda: len(server.server_state.connections) == 1)
    with connect(server, REQUEST) as client:
        assert client.recv(2**16).startswith(b"HTTP/1.1 200 ")
    others.pop().close()


def test_idle_connections_make_room_once_all_are_in_use(
    start_here: StartHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens as many as there may be must not keep the others out for the whole time of keep-alive."""
    monkeypatch.setattr(http_protocol, "MAX_IDLE_WHEN_FULL_S", 0.5)
    server = start_here("debug?delay_s=4", max_connections=3)
    with connect(server) as silent, connect(server, HEALTH) as idle, connect(server, REQUEST) as busy:
        assert silent.recv(2**16) == b""
        assert idle.recv(2**16).startswith(b"HTTP/1.1 200 ")
        assert idle.recv(2**16) == b""
        with connect(server, HEALTH + REQUEST) as client:
            assert statuses(client.recv(2**16)) == [200]
            assert client.recv(2**16).startswith(b"HTTP/1.1 200 ")
        assert busy.recv(2**16).startswith(b"HTTP/1.1 200 ")


def test_idle_connections_stay_while_there_is_room(
    start_here: StartHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "MAX_IDLE_WHEN_FULL_S", 0.1)
    server = start_here(max_connections=3)
    with connect(server) as silent, connect(server, HEALTH) as idle:
        assert idle.recv(2**16).startswith(b"HTTP/1.1 200 ")
        time.sleep(2.5)
        for client in (silent, idle):
            client.sendall(REQUEST)
            assert client.recv(2**16).startswith(b"HTTP/1.1 200 ")


def test_a_head_has_an_end(start_here: StartHere) -> None:
    """httptools has no limit of its own."""
    server = start_here()
    with connect(server, b"GET / HTTP/1.1\r\nx: ") as client:
        wait_until(lambda: bool(server.server_state.connections))
        answer = send_until_answered(client, b"x" * 4096, MAX_HEAD_BYTES * 100)
    assert not answer or "headers have more than" in error_of(answer, 431)


@pytest.mark.parametrize(
    "begin",
    [
        b"GET / HTTP/1.1\r\nhost: test\r\n" + b"x: " + b"y" * (MAX_HEAD_BYTES - 10) + b"\r\nz: " + b"y" * 100,
        b"GET /" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nhost: test",
    ],
    ids=["headers", "path"],
)
def test_a_head_that_is_too_large_is_refused_in_one_packet_too(begin: bytes, start_here: StartHere) -> None:
    with connect(start_here(), begin + b"\r\n\r\n") as client:
        assert "headers have more than" in error_of(read_all(client), 431)


def test_trailers_have_an_end(start_here: StartHere) -> None:
    server = start_here()
    with connect(server, HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx: ") as client:
        answer = send_until_answered(client, b"x" * 4096, MAX_HEAD_BYTES * 100)
    assert not answer or answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 422 "))


def test_many_small_chunks_are_not_taken_for_trailers(start_here: StartHere) -> None:
    """Clients send the size of a chunk, and the chunk, in packets of their own."""
    num_chunks = MAX_HEAD_BYTES // 500
    size = b"1" + b";" + b"e" * 1000 + b"\r\n"
    with connect(start_here(), HEAD + b"transfer-encoding: chunked\r\n\r\n") as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(b"b\r\n" + b'{"input": "' + b"\r\n")
        for _ in range(num_chunks):
            for part in (size, b"x\r\n"):
                client.sendall(part)
                time.sleep(0.003)
        client.sendall(b'2\r\n"}\r\n0\r\n\r\n')
        assert client.recv(2**16).startswith(b"HTTP/1.1 200 ")


def test_a_large_body_is_not_taken_for_a_head(start_here: StartHere) -> None:
    """Neither are many requests in one packet."""
    text = b'{"input": "' + b"x" * (3 * MAX_HEAD_BYTES) + b'"}'
    large = HEAD + b"content-length: %d\r\n\r\n" % len(text) + text
    padded = REQUEST.replace(b"host", b"x: " + b"y" * 20_000 + b"\r\nhost")
    with connect(start_here(), large[:50]) as client:
        time.sleep(0.05)
        client.sendall(large[50:] + padded * 8 + padded[:20_000])
        time.sleep(0.05)
        client.sendall(padded[20_000:] + padded.replace(b"host", b"connection: close\r\nhost"))
        assert statuses(read_all(client)) == [200] * 11


@pytest.mark.parametrize("begin", [b"GET / HTTP/1.1\r\n", HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n"])
def test_headers_are_counted_also_behind_a_body(begin: bytes, start_here: StartHere) -> None:
    server = start_here()
    with connect(server, begin + b"x: y\r\n" * (MAX_HEADERS + 2)) as client:
        assert read_all(client).startswith(b"HTTP/1.1 400 ")


def send_until_answered(client: socket.socket, part: bytes, max_bytes: int) -> bytes:
    """The answer; nothing where the connection was reset before it could be read."""
    client.settimeout(0.01)
    for _ in range(0, max_bytes, len(part)):
        try:
            client.sendall(part)
            return read_all(client)
        except TimeoutError:
            continue
        except ConnectionError:
            return b""
    raise AssertionError(f"{max_bytes} bytes of head are read")


def test_uvicorn_has_the_parts_that_the_protocol_extends() -> None:
    """They are not documented; a release without them has to be noticed here."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

    assert callable(uvicorn.Server.on_tick)
    for name in ("on_message_begin", "on_header", "on_headers_complete", "on_message_complete"):
        assert callable(getattr(HttpToolsProtocol, name))
    assert callable(RequestResponseCycle.run_asgi)
