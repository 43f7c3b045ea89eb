"""Clients that send slowly, never read, or come in numbers, against a server over real sockets."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from infinity_emb.cli.guarded_protocol import MAX_HEAD_BYTES, MAX_HEADERS
from infinity_emb.cli.uvicorn_server import UvicornServer
from infinity_emb.config import ServerConfig
from tests.server.tiny_server import build_debug_app, debug_args

PATIENCE_S = 30
HEAD = b"POST /embeddings HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
BODY = b'{"input": "four"}'
REQUEST = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY

StartHere = Callable[..., "ServerOnAThread"]


class ServerOnAThread(UvicornServer):
    """A server of this process, so that a test can look at its connections; without signals, which are of the
    main thread."""

    def __init__(self, app: FastAPI, config: ServerConfig) -> None:
        async def fail_rest() -> None: ...

        super().__init__(app, config, url="http://test", fail_rest=fail_rest, tell_state=lambda: None)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = self.listening.getsockname()
        self.thread = threading.Thread(target=self.run, kwargs={"sockets": [self.listening]})

    def capture_signals(self) -> Any:
        return contextlib.nullcontext()


@pytest.fixture
def start_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[StartHere]:
    monkeypatch.delattr(signal, "SIGUSR1")
    running: list[ServerOnAThread] = []

    def start(model: str = "debug", app: FastAPI | None = None, **options: Any) -> ServerOnAThread:
        server = ServerOnAThread(app or build_debug_app(debug_args(model)), ServerConfig(**options))
        running.append(server)
        server.thread.start()
        wait_until(lambda: server.started)
        return server

    yield start
    for server in running:
        server.should_exit = True
        server.thread.join(PATIENCE_S)
        assert not server.thread.is_alive()


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.01)


def connect(server: ServerOnAThread, *first: bytes) -> socket.socket:
    client = socket.create_connection(server.address, timeout=PATIENCE_S)
    for part in first:
        client.sendall(part)
    return client


def read_all(client: socket.socket) -> bytes:
    """Until the server closes."""
    parts = []
    while part := client.recv(2**16):
        parts.append(part)
    return b"".join(parts)


def error_of(answer: bytes, status: int) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in head.lower()
    error = json.loads(body)["error"]
    assert error["code"] == status
    return str(error["message"])


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
    server = start_here(request_read_timeout_s=1)
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
    server = start_here(app=big_answers(), answer_write_timeout_s=1)
    with connect(server, b"GET /big?size=50000000 HTTP/1.1\r\nhost: test\r\n\r\n") as client:
        wait_until(lambda: bool(server.server_state.connections))
        wait_until(lambda: not server.server_state.connections)
        with contextlib.suppress(ConnectionError):
            assert len(read_all(client)) < 50_000_000


def test_an_answer_that_is_read_slowly_arrives_whole(start_here: StartHere) -> None:
    server = start_here(app=big_answers(), answer_write_timeout_s=1)
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


def test_a_head_has_an_end(start_here: StartHere) -> None:
    """httptools has no limit of its own."""
    server = start_here()
    with connect(server, b"GET / HTTP/1.1\r\nx: ") as client:
        wait_until(lambda: bool(server.server_state.connections))
        answer = send_until_answered(client, b"x" * 4096, MAX_HEAD_BYTES * 100)
    assert not answer or "headers have more than" in error_of(answer, 431)


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

    assert uvicorn.Server.on_tick
    for name in ("on_message_begin", "on_header", "on_headers_complete", "on_message_complete"):
        assert callable(getattr(HttpToolsProtocol, name))
    assert RequestResponseCycle.run_asgi
