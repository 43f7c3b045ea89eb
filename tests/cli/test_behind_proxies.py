"""The server behind nginx and HAProxy, whose connections to it are shared by all clients."""

from __future__ import annotations

import concurrent.futures
import gzip
import json
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.cli.test_request_parser import OFFERS, SMUGGLED
from tests.support.proxies import connect_to, run_proxy
from tests.support.server_on_a_thread import BODY, HEAD, StartHere, read_all
from tests.support.tiny_server import build_debug_app

CLOSE = b"connection: close\r\n"
ROOT = "/inf/api"


@pytest.fixture(params=["nginx", "haproxy"])
def proxy(request: pytest.FixtureRequest, start_here: StartHere) -> Iterator[str]:
    """The socket of a proxy in front of a server that is told of its prefix."""
    server = start_here(app=build_debug_app(proxy_root_path=ROOT))
    with run_proxy(request.param, server.address) as path:
        yield path


@pytest.fixture
def client(proxy: str) -> Iterator[httpx.Client]:
    with httpx.Client(transport=httpx.HTTPTransport(uds=proxy), base_url="http://test", timeout=60) as client:
        yield client


@pytest.mark.parametrize("offer", list(OFFERS.values()), ids=list(OFFERS))
def test_the_body_of_one_client_is_never_the_request_of_another(
    proxy: str, client: httpx.Client, offer: bytes
) -> None:
    """Twenty of twenty victims got the attacker's response, also of a path that the proxy closes."""
    body = b"\r\n" * 5000 + SMUGGLED
    for number in range(5):
        head = HEAD + offer + b"content-length: %d\r\n\r\n" % len(body)
        with connect_to(proxy, head) as attacker:
            time.sleep(0.02)
            attacker.sendall(body)
            time.sleep(0.02)
            answer = client.post("/embeddings", json={"input": "x" * (number + 1)})
            assert answer.json()["data"][0]["embedding"][0] == number + 1
    assert client.get("/metrics").status_code == 403


def test_each_of_many_clients_gets_its_own_response(client: httpx.Client) -> None:
    def embed(length: int) -> float:
        answer = client.post("/embeddings", json={"input": "x" * length})
        return float(answer.json()["data"][0]["embedding"][0])

    lengths = [1 + number % 37 for number in range(200)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(embed, lengths)) == lengths


def test_bodies_arrive_whole_however_they_are_sent(client: httpx.Client) -> None:
    headers = {"content-type": "application/json"}
    large = json.dumps({"input": ["x" * 1000] * 1000}).encode()
    chunks = iter([large[:1000], large[1000:]])
    assert client.post("/embeddings", content=large, headers=headers).status_code == 200
    assert client.post("/embeddings", content=chunks, headers=headers).status_code == 200
    compressed = {**headers, "content-encoding": "gzip"}
    assert client.post("/embeddings", content=gzip.compress(large), headers=compressed).status_code == 200


def test_heads_and_probes_pass(client: httpx.Client) -> None:
    for _ in range(3):
        answer = client.head("/health")
        assert (answer.status_code, answer.content) == (200, b"")
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("framing", [b"expect: 100-continue\r\n", b""])
def test_a_body_may_be_waited_for(proxy: str, framing: bytes) -> None:
    head = HEAD + CLOSE + framing + b"content-length: %d\r\n\r\n" % len(BODY)
    with connect_to(proxy, head) as client:
        if framing:
            assert client.recv(2**16).startswith(b"HTTP/1.1 100 ")
        client.sendall(BODY)
        assert b"embedding" in read_all(client)


def test_a_prefix_that_the_proxy_strips_leads_to_the_right_place(client: httpx.Client) -> None:
    for path in ("/v1/embeddings", "/v1/embeddings/", "//v1/embeddings"):
        assert client.post(ROOT + path, json={"input": "a"}).status_code == 200
    answer = client.get(f"{ROOT}/")
    assert httpx.URL(answer.headers["location"]).path == f"{ROOT}/ui"


def test_a_client_that_hangs_up_does_not_disturb_the_others(proxy: str, client: httpx.Client) -> None:
    request = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    for _ in range(20):
        connect_to(proxy, request).close()
        assert client.post("/embeddings", json={"input": "abc"}).json()["data"][0]["embedding"][0] == 3
