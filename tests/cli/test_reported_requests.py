"""Requests in forms that few clients send: answered, or refused as RFC 9112 says."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.server_on_a_thread import (
    BODY,
    HEAD,
    HEALTH,
    ServerOnAThread,
    StartHere,
    answers_of,
    connect,
    read_all,
)

CLOSE = b"connection: close\r\n"
SIZED = b"content-length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = b"transfer-encoding: chunked\r\n"


@pytest.fixture
def server(start_here: StartHere) -> ServerOnAThread:
    return start_here()


def send(server: ServerOnAThread, data: bytes) -> bytes:
    with connect(server, data) as client:
        return read_all(client)


def check_vector(answer: bytes) -> None:
    """The fake model answers 13 times the number of characters of the text."""
    assert json.loads(answer)["data"][0]["embedding"] == [4.0] * 13


def check_embedded(received: bytes) -> None:
    [(status, body)] = answers_of(received)
    assert status == 200
    check_vector(body)


@pytest.mark.parametrize(
    "chunks",
    [
        b"11\r\n%b\r\n0\r\n\r\n" % BODY,
        b"011\r\n%b\r\n000\r\n\r\n" % BODY,
        b"11;name=value\r\n%b\r\n0;last\r\n\r\n" % BODY,
        b'11;name="a;b"\r\n%b\r\n0\r\n\r\n' % BODY,
        b"11\r\n%b\r\n0\r\nx-trailer: 1\r\nx-other: 2\r\n\r\n" % BODY,
        b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n",
    ],
    ids=["plain", "zeros", "extensions", "a quoted extension", "trailers", "a byte each"],
)
def test_a_body_in_chunks_is_put_together(chunks: bytes, server: ServerOnAThread) -> None:
    assert len(BODY) == 0x11
    check_embedded(send(server, HEAD + CLOSE + CHUNKED + b"\r\n" + chunks))


@pytest.mark.parametrize(
    "target", [b"http://test/embeddings", b"https://other:80/embeddings", b"/embeddings?"]
)
def test_the_target_may_be_a_whole_address(target: bytes, server: ServerOnAThread) -> None:
    """Clients send it to a proxy; RFC 9112 3.2.2 has every server accept it."""
    check_embedded(send(server, HEAD.replace(b"/embeddings", target) + CLOSE + SIZED))


def test_http_1_0_is_answered_once_and_closed(server: ServerOnAThread) -> None:
    old = HEAD.replace(b"HTTP/1.1", b"HTTP/1.0")
    check_embedded(send(server, old + SIZED))
    check_embedded(send(server, old.replace(b"host: test\r\n", b"") + SIZED))
    check_embedded(send(server, old + b"connection: keep-alive\r\n" + SIZED))


def test_requests_in_one_packet_are_answered_in_their_order(server: ServerOnAThread) -> None:
    bodies = [b'{"input": "%b"}' % (b"a" * length) for length in (5, 1, 3, 2)]
    requests = [HEAD + b"content-length: %d\r\n\r\n" % len(body) + body for body in bodies]
    last = HEALTH.replace(b"\r\n\r\n", b"\r\n" + CLOSE + b"\r\n")
    *embedded, (status, _) = answers_of(send(server, b"".join(requests) + last))
    assert [json.loads(body)["data"][0]["embedding"][0] for _, body in embedded] == [5, 1, 3, 2]
    assert status == 200


def test_a_client_that_expects_to_be_asked_for_the_body_is_asked(server: ServerOnAThread) -> None:
    head = HEAD + CLOSE + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(BODY)
    with connect(server, head) as client:
        assert client.recv(2**16).startswith(b"HTTP/1.1 100 ")
        client.sendall(BODY)
        check_embedded(read_all(client))


@pytest.mark.parametrize(("size", "statuses"), [(16_000, (200,)), (200_000, (431,))])
def test_a_cookie_may_be_large_but_not_huge(
    size: int, statuses: tuple[int, ...], server: ServerOnAThread
) -> None:
    received = send(server, HEAD + CLOSE + b"cookie: a=%b\r\n" % (b"x" * size) + SIZED)
    assert int(received.split()[1]) in statuses


def test_three_hundred_headers_are_refused_by_their_number(server: ServerOnAThread) -> None:
    few, many = (
        b"".join(b"x-header-%d: value\r\n" % number for number in range(count)) for count in (150, 300)
    )
    check_embedded(send(server, HEAD + CLOSE + few + SIZED))
    received = send(server, HEAD + CLOSE + many + SIZED)
    assert int(received.split()[1]) in (400, 431)
    assert b"headers" in received


@pytest.mark.parametrize("request_id", [b"", b" ", b"a" * 5000, b"\xff\xfe", b'"; drop', b"a\tb", b"1,2"])
def test_an_odd_request_id_is_no_error(request_id: bytes, server: ServerOnAThread) -> None:
    received = send(server, HEAD + CLOSE + b"x-request-id: " + request_id + b"\r\n" + SIZED)
    check_embedded(received)
    [answered] = re.findall(rb"(?i)^x-request-id: (.*?)\r$", received.partition(b"\r\n\r\n")[0], re.MULTILINE)
    assert re.fullmatch(rb"[\x20-\x7e]{1,200}", answered)


@pytest.mark.parametrize(
    "framing",
    [
        b"content-length: 17\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 17\r\n",
        b"transfer-encoding: chunked, chunked\r\n",
        b"content-length: 17\r\ncontent-length: 18\r\n",
        b"content-length: 17, 17\r\n",
        b"content-length: -1\r\n",
        b"content-length: 0x11\r\n",
    ],
)
def test_a_body_of_two_lengths_is_refused_and_nothing_behind_it_is_read(
    framing: bytes, server: ServerOnAThread
) -> None:
    received = send(server, HEAD + framing + b"\r\n" + BODY + HEALTH)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"HTTP/1.1 ") == 1
