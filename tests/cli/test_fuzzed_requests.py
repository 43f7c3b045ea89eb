"""Odd requests over real sockets: each connection gets well-formed responses, none of them a 500."""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import random
import re
import socket
from pathlib import Path

import pytest

from tests.support.server_on_a_thread import HEALTH, ServerOnAThread, StartHere, connect, statuses
from tests.support.tiny_server import build_debug_app

NUM_CONNECTIONS = int(os.environ.get("FUZZED_CONNECTIONS", "600"))
VERSIONS = [*["1.1"] * 8, "1.0", "2.0", "0.9", "9"]
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PURGE", "get", "G\0T", ""]
PATHS = [
    *("/", "/health", "/metrics", "/models", "/models/debug", "/v1/embeddings", "/embeddings", "/rerank"),
    *(
        "/admin/models",
        "/docs",
        "/openapi.json",
        "/api/embed",
        "/v2/embed",
        "/tokenize",
        "*",
        "//",
        "/%00",
        "/%ff",
    ),
    *("/v1/files", "/v1/files?limit=--1&after=%00", "/v1/files/x/content", "/v1/batches", "/v1/batches/%00"),
    *("http://a/health", "/embeddings?a=%zz", "/\xe9", "/..%2f..", "/v1//embeddings/", "/docs/../etc", ""),
]
NUMBERS = ["--1", "-", "", "9" * 5000, "1e999", "nan", "0x1", "\xb2", "1_0", "+1", "-0", "1.5", " 7 ", "bulk"]
ORIGINS = ["null", "http://a", "a\tb", "x" * 3000]
KEYS = ["Bearer api-secret", "Bearer", "", "Basic YTpi", "bearer  api-secret ", "Bearer \xff", "x" * 5000]
NAMES = {
    "x-priority": NUMBERS,
    "x-request-timeout": NUMBERS,
    "x-request-id": [*NUMBERS, "a b", "\x7f", "ok"],
    "accept": [*NUMBERS, "application/octet-stream;q=", ";;,,;q=1", "a/b;q=0.5,*/*;q=x"],
    "content-type": [
        "application/json",
        "application/json; charset=utf-9",
        "a/b+json",
        "text/plain",
        "multipart/form-data; boundary=b",
        "multipart/form-data; boundary=" + "b" * 300,
        "multipart/form-data; boundary=b; charset=x",
        "multipart/form-data",
        ";",
        "",
    ],
    "content-encoding": ["gzip", "deflate", "br", "identity", ",", "gzip, gzip"],
    "content-length": ["0", "5", "17", "-1", "+5", "5, 5", "9" * 30, "0x5", "", "5 5"],
    "transfer-encoding": ["chunked", "gzip, chunked", "chunked, chunked", "identity", "x", "\x0bchunked"],
    "connection": ["close", "keep-alive", "upgrade", "Upgrade, close", "x", ","],
    "upgrade": ["h2c", "websocket", "", "x/1, y"],
    "expect": ["100-continue", "x", "100-continue, x", ""],
    "authorization": KEYS,
    "api-key": KEYS,
    "host": ["test", "a b", "", "[::1]:80", "x" * 300],
    "origin": ORIGINS,
    "access-control-request-method": ["POST", "x", ""],
    "access-control-request-headers": ["a, b", "\xe9", "x" * 3000],
    "access-control-request-private-network": ["true", "x"],
    "x-forwarded-for": ["1.2.3.4", "x", "1.2.3.4, " * 100, "[::1]:x", ""],
    "x-forwarded-proto": ["https", "x", "\xe9", "http, https"],
    "cookie": ["a=b", "x" * 9000, "\xe9;;="],
    "range": [
        "bytes=0-1",
        "bytes=9-1",
        "bytes=" + "0-1," * 500,
        "x=1",
        "bytes=--1",
        "bytes=" + "9" * 5000 + "-",
    ],
    "if-range": ["x", '"a"', "Thu, 01 Jan 1970 00:00:00 GMT"],
    "if-none-match": ["*", '"a"', "x"],
    "if-modified-since": ["x", "Thu, 99 Jan 1970 00:00:00 GMT", "9" * 5000],
    "accept-encoding": ["gzip", "br;q=x", ""],
    "x" * 2000: ["y"],
    "bad name": ["y"],
    "": ["y"],
}
BODIES = [
    b'--b\r\ncontent-disposition: form-data; name="file"; filename="\xff"\r\n\r\nx\r\n--b--\r\n',
    b'--b\r\ncontent-disposition: form-data; name="expires_after[seconds]"\r\n\r\n--1\r\n--b--\r\n',
    b"--b\r\ncontent-disposition: \xff; name=\r\n\r\nx",
    *(b"", b"{}", b'{"input": "four"}', b"[" * 5000, b"nul", b'"\xff"', b'{"input": NaN}', b"\0" * 50),
    *(
        gzip.compress(b'{"input": "four"}'),
        b'{"input": "a", "timeout": 1e999, "priority": 1e30}',
        b"\r\n" * 40,
    ),
]


def make_request(rng: random.Random) -> bytes:
    """Mostly valid, with some odd parts."""
    target = f"{rng.choice(METHODS)} {rng.choice(PATHS)} HTTP/{rng.choice(VERSIONS)}"
    body = rng.choice(BODIES)
    headers = [] if rng.random() < 0.1 else [("host", "test")]
    if rng.random() < 0.8:
        headers += [("content-type", "application/json"), ("content-length", str(len(body)))]
    if rng.random() < 0.7:
        headers.append(("authorization", "Bearer api-secret"))
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        name = rng.choice(list(NAMES))
        headers.append((name, rng.choice(NAMES[name])))
    lines = [target, *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def read_until_quiet(client: socket.socket) -> bytes:
    client.settimeout(0.05)
    received = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        while part := client.recv(2**20):
            received += part
    return received


@pytest.fixture
def server(start_here: StartHere, tmp_path: Path) -> ServerOnAThread:
    app = build_debug_app(
        api_key="api-secret", admin_key="admin-secret", permissive_cors=True, batch_dir=str(tmp_path)
    )
    return start_here(app=app)


def test_no_request_is_a_500_or_leaves_a_traceback(
    server: ServerOnAThread, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    seen: set[int] = set()
    for seed in range(NUM_CONNECTIONS):
        rng = random.Random(seed)
        data = b"".join(make_request(rng) for _ in range(rng.choice([1, 1, 2, 3])))
        with connect(server) as client:
            with contextlib.suppress(ConnectionError):
                client.sendall(data)
                if rng.random() < 0.5:
                    client.shutdown(socket.SHUT_WR)
            received = read_until_quiet(client)
        codes = [int(code) for code in re.findall(rb"^HTTP/1\.1 (\d{3}) ", received, re.MULTILINE)]
        seen.update(codes)
        assert not [code for code in codes if code >= 500 and code != 501], (seed, data, received)
    assert {200, 400, 401, 404, 405, 417, 422} <= seen
    assert [record.getMessage() for record in caplog.records] == []
    with connect(server, HEALTH) as client:
        assert statuses(read_until_quiet(client)) == [200]
