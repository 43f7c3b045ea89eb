"""Bodies that are made to cost much, posted to every route: each is refused, or served, and soon.

No time is asserted: what has no limit takes minutes here, and the test's own time limit ends it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.routing import Route

from infinity_emb.server.requests.json_body import parse_json
from infinity_emb.server.requests.json_counts import MAX_COUNTS, MAX_WIDE_BYTES
from infinity_emb.server.server_app import ServerApp
from tests.support.tiny_server import build_debug_app, client_of, debug_args

pytestmark = pytest.mark.anyio

MIB = 2**20
NUMBER = MAX_COUNTS.num_containers
JSON = {"content-type": "application/json"}
NAMES = ("input", "inputs", "texts", "documents", "queries", "query", "model", "dimensions", "prompt", "name")


def deep(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * depth + b"1" + closing * depth


def many(member: bytes, size_bytes: int) -> bytes:
    return b"[" + b",".join([member] * (size_bytes // (len(member) + 1))) + b"]"


# What each of NAMES holds.
SIZE = MIB // 4  # ten times in a body
VALUES = {
    "a deep list": deep(SIZE),
    "a deep object": deep(SIZE, b'{"a":', b"}"),
    "as deep as may be": deep(1000),
    "many lists": many(b"[]", SIZE),
    "many objects": many(b"{}", SIZE),
    "many small lists": many(b"[1]", SIZE),
    "many texts": many(b'""', SIZE),
    "many nulls": many(b"null", SIZE),
    "a long number": b"9" * SIZE,
    "a number beyond 64 bits": b"9" * 30,
    "a number below all": b"-" + b"9" * 30,
    "a large exponent": b"1e999999999",
    "a small exponent": b"1e-999999999",
    "a long fraction": b"0." + b"1" * SIZE,
    "a lone surrogate": rb'"\ud800"',
    "NaN": b"NaN",
    "a long text": b'"' + b"a" * SIZE + b'"',
    "a text of zeros": rb'"\u0000"',
}


@pytest.fixture
async def servers(anyio_backend: str) -> AsyncIterator[tuple[httpx.AsyncClient, list[str]]]:
    kinds = ("embedder", "reranker", "classifier", "multivector")
    app = build_debug_app(*(debug_args(f"{kind}?kind={kind}") for kind in kinds))
    async with client_of(app) as client:
        yield client, post_paths(app)


def post_paths(app: ServerApp) -> list[str]:
    routes = [route for route in app.routes if isinstance(route, Route)]
    return sorted({route.path for route in routes if "POST" in (route.methods or ())})


@pytest.mark.parametrize("what", VALUES)
async def test_every_route_answers_a_bomb(what: str, servers: tuple[httpx.AsyncClient, list[str]]) -> None:
    client, paths = servers
    assert len(paths) > 25
    for path in paths:
        body = b"{%b}" % b",".join(b'"%b":%b' % (name.encode(), VALUES[what]) for name in NAMES)
        response = await client.post(path, content=body, headers=JSON)
        assert 400 <= response.status_code < 500 or what in {"a long text", "many texts"}, (
            path,
            response.text,
        )
        assert response.status_code < 500, (path, response.text)
        assert len(response.content) < 20_000, "what was sent is not sent back"
        assert response.json()


async def test_fields_are_counted_and_a_large_object_is_refused_unread(client: httpx.AsyncClient) -> None:
    """A million of them held the event loop for a second while they were parsed, and then for another."""
    keys = b",".join(b'"%d":1' % number for number in range(MAX_COUNTS.num_fields + 1))
    response = await client.post("/embeddings", content=b"{" + keys + b"}", headers=JSON)
    assert response.status_code == 422
    assert "131073 fields" in response.json()["error"]["message"]


@pytest.mark.parametrize("character", ["\U0001f600", r"\ud83d\ude00", r"\uD83D\uDE00"])
async def test_a_body_that_becomes_four_times_as_large_has_a_smaller_limit(
    character: str, client: httpx.AsyncClient
) -> None:
    """Parsing 31 MB with one emoji held the event loop for 145 ms, though it was done on a thread."""
    text = "a" * MAX_WIDE_BYTES
    for content, status in ((text + character, 413), (text[:-100] + character, 200)):
        body = b'{"input": "%b"}' % content.encode()
        response = await client.post("/embeddings", content=body, headers=JSON)
        assert response.status_code == status, response.text


@pytest.mark.parametrize("harmless", ["\u4e2d", r"\ud55c", r"\\u0064"])
def test_other_characters_do_not_lower_the_limit(harmless: str) -> None:
    text = "a" * MAX_WIDE_BYTES
    body = '{"input": "' + text + harmless + '"}'
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        assert len(parse_json(body.encode(encoding))["input"]) > MAX_WIDE_BYTES


async def test_a_number_of_keys_is_no_number_of_errors(
    servers: tuple[httpx.AsyncClient, list[str]],
) -> None:
    client, paths = servers
    keys = b",".join(b'"%d":1' % number for number in range(100_000))
    for path in paths:
        response = await client.post(path, content=b"{" + keys + b"}", headers=JSON)
        assert response.status_code < 500  # a few routes read no member
        assert len(response.content) < 20_000


@pytest.mark.parametrize("member", [b"[]", b"{}", b'[[],"[[["]', rb'"\"",[]', rb'"\\",[]'])
async def test_lists_and_objects_are_counted_and_a_large_body_of_them_is_refused_unread(
    member: bytes, client: httpx.AsyncClient
) -> None:
    """32 MiB of them held the event loop for 20 seconds, of which parsing alone took three."""
    body = b'{"input":' + many(member, 16 * MIB) + b"}"
    response = await client.post("/embeddings", content=body, headers=JSON)
    assert response.status_code == 422
    message = response.json()["error"]["message"]
    assert "lists and objects" in message
    assert "the limits are 131072, 131072, 262144 and 1048576" in message


@pytest.mark.parametrize("member", [b"1", b'""', b"null", rb'"\","'])
async def test_values_are_counted_and_a_large_body_of_them_is_refused_unread(
    member: bytes, client: httpx.AsyncClient
) -> None:
    """32 MiB of `1,` held the event loop for a second."""
    body = b'{"input":' + many(member, 16 * MIB) + b"}"
    response = await client.post("/embeddings", content=body, headers=JSON)
    assert response.status_code == 422
    assert "about" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "text",
    [
        "[{" * NUMBER,
        '["\\' * NUMBER,
        "\\" * 9 + "[" * 2 * NUMBER,
        "," * MAX_COUNTS.num_values,
        '":' * 2 * MAX_COUNTS.num_texts,
        "\\" * (MIB + 1) + '[",:' * 2 * MAX_COUNTS.num_texts,
    ],
)
def test_brackets_colons_quotes_and_commas_in_a_text_are_no_values(text: str) -> None:
    members = {"input": [text, text], "[": "{"}
    assert parse_json(json.dumps(members).encode()) == members


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@given(body=values | st.dictionaries(st.sampled_from(NAMES), values), place=st.integers(0))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_json_is_answered_by_any_route(
    body: Any, place: int, servers: tuple[httpx.AsyncClient, list[str]]
) -> None:
    """NaN and infinity among it, which Python writes as no JSON has them."""
    client, paths = servers
    content = json.dumps(body)
    response = await client.post(paths[place % len(paths)], content=content, headers=JSON)
    assert response.status_code < 500, response.text


@given(body=st.binary(max_size=200))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_bytes_are_refused(body: bytes, servers: tuple[httpx.AsyncClient, list[str]]) -> None:
    client, paths = servers
    for path in paths[:: len(paths) // 4]:
        assert 400 <= (await client.post(path, content=body, headers=JSON)).status_code < 500
