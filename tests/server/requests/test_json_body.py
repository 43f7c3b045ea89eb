"""Everything that is wrong with a body before an engine sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

import httpx
import pytest
from fastapi.exceptions import RequestValidationError

from infinity_emb.server.requests.json_body import parse_json
from infinity_emb.server.requests.json_counts import MAX_COUNTS
from infinity_emb.server.requests.json_text import MAX_REPLACEMENTS
from tests.support.tiny_server import build_debug_app, client_of, client_of_kind, embed

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "input: must have at least one text; the list is empty"),
        (None, "input: must be a text or a list of texts, not null"),
        (3, "input: must be a text or a list of texts, not a number"),
        (True, "input: must be a text or a list of texts, not true or false"),
        ({"text": "a"}, "input: must be a text or a list of texts, not an object"),
        (["a", None], "input: must be a list of texts; item 1 is null"),
        (["a", "b", 1.5], "input: must be a list of texts; item 2 is a number"),
        (
            ["a", {"pdf": "b"}],
            "input: item 1 is an object that needs either a `text` or an `image`",
        ),
        ([["a"]], "input: must be a list of texts; item 0 is a list"),
        ([[]], "input: must be a list of texts; item 0 is a list"),
        ([True], "input: must be a list of texts; item 0 is true or false"),
    ],
)
async def test_an_input_of_another_form_is_told_apart(
    client: httpx.AsyncClient, value: Any, message: str
) -> None:
    response = await client.post("/embeddings", json={"input": value})
    assert response.status_code == 422
    body = response.json()
    assert body["error"] == {
        "message": message,
        "type": "invalid_request_error",
        "param": "input",
        "code": 422,
    }
    [detail] = body["detail"]
    assert list(detail) == ["type", "loc", "msg", "input"]
    assert detail["loc"] == ["body", "input"]
    assert detail["input"] == value


@pytest.mark.parametrize("value", [[1, 2, 3], [[1, 2], [3]], [[1, 2, 3]] * 2048])
async def test_token_ids_are_refused_with_the_setting_of_the_client(
    client: httpx.AsyncClient, value: list[Any]
) -> None:
    response = await client.post("/v1/embeddings", json={"input": value})
    assert response.status_code == 422
    assert "check_embedding_ctx_length=False" in response.json()["error"]["message"]
    assert len(response.content) < 1000


@pytest.mark.parametrize(
    ("members", "param", "part"),
    [
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "'bytes' or 'bytes_only'"),
        ({"input": "a", "modality": "video"}, "modality", "'text', 'image' or 'audio'"),
        ({"input": "a", "dimensions": "many"}, "dimensions", "valid integer"),
        ({"input": "a", "dimensions": 4.5}, "dimensions", "valid integer"),
        ({"input": "a", "model": 3}, "model", "valid string"),
        ({"input": "a", "truncate": "MIDDLE"}, "truncate", "'NONE', 'START', 'END', 'left' and 'right'"),
        ({"input": "a", "truncate": 1}, "truncate", "must be true or false, or one of"),
        ({"input": "a", "truncation_side": "middle"}, "truncation_side", "'left' or 'right'"),
        ({"input": "a", "outputs": []}, "outputs", "at least 1 item"),
        ({"input": "a", "outputs": ["dense"] * 4}, "outputs", "at most 3 items"),
        ({"input": "a", "outputs": ["maxsim"]}, "outputs", "'dense', 'sparse' or 'multivector'"),
        ({"input": "a", "embedding_dtype": "int4"}, "embedding_dtype", "'float32', 'float16'"),
        ({"input": "a", "output_dtype": "int4"}, "output_dtype", "'float32', 'float16'"),
        ({"input": "a", "embedding_type": "int4"}, "embedding_type", "'float32', 'float16'"),
        ({"input": "a", "chunking": "some"}, "chunking", "valid boolean"),
        ({"input": "a", "late_chunking": "yes"}, "late_chunking", "an object with `chunk_size`"),
        ({"input": "a", "late_chunking": {"chunk_size": 0}}, "late_chunking", "from 1 to"),
        ({"input": "a", "late_chunking": {"chunk_size": 2**40}}, "late_chunking", "from 1 to"),
        ({"input": "a", "late_chunking": {"chunk_size": True}}, "late_chunking", "from 1 to"),
        ({"input": "a", "late_chunking": {"chunk_size": 4.5}}, "late_chunking", "from 1 to"),
        ({"input": "a", "prompt": 3}, "prompt", "valid string"),
        ({"input": "a", "task": 3}, "task", "valid string"),
        ({"model": "debug"}, "input", "Field required"),
        ({}, "input", "Field required"),
    ],
)
async def test_a_member_that_does_not_fit_is_named(
    client: httpx.AsyncClient, members: dict[str, Any], param: str, part: str
) -> None:
    response = await client.post("/embeddings", json=members)
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
    assert part in error["message"]
    assert response.json()["detail"][0]["loc"][:2] == ["body", param]


async def test_several_wrong_members_are_all_told(client: httpx.AsyncClient) -> None:
    members = {"input": 1, "dimensions": "x", "modality": "x", "encoding_format": "x", "truncate": "x"}
    body = (await client.post("/embeddings", json=members)).json()
    assert len(body["detail"]) == 5
    assert body["error"]["message"].endswith("; and 2 more")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"input": NaN}',
        b'{"input": "a", "x": -Infinity}',
        b'{"input": "a", "x": 1e999}',
        b'{"input": "a", "x": ' + b"9" * 5000 + b"}",
        b'{"input": "a",}',
        b'{"input": ["a",]}',
        b"{'input': 'a'}",
        b'{"input": "a"}{"input": "b"}',
        b'{"input": "\xed\xa0\xbd"}',
        b'{"input": "\xff"}',
        b'{"input": ' + b"[" * 100_000,
    ],
)
async def test_malformed_json_is_a_422_with_its_place(client: httpx.AsyncClient, content: bytes) -> None:
    response = await client.post("/embeddings", content=content, headers=JSON)
    assert response.status_code == 422
    assert response.json()["error"]["message"].startswith("the body is not valid JSON: ")
    [detail] = response.json()["detail"]
    assert detail["type"] == "json_invalid"
    assert detail["loc"][0] == "body"
    assert isinstance(detail["loc"][1], int)


@pytest.mark.parametrize("content", [b"[1]", b'"text"', b"null", b"3"])
async def test_json_that_is_no_object_is_a_422(client: httpx.AsyncClient, content: bytes) -> None:
    response = await client.post("/embeddings", content=content, headers=JSON)
    assert response.status_code == 422
    assert response.json()["error"]["message"] == "the body must be a JSON object"


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON", "a/b+json"]
)
async def test_json_content_types_are_accepted(client: httpx.AsyncClient, content_type: str) -> None:
    response = await client.post(
        "/embeddings", content=b'{"input": "a"}', headers={"content-type": content_type}
    )
    assert response.status_code == 200


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain"])
async def test_another_content_type_is_a_415_that_says_what_to_set(
    client: httpx.AsyncClient, content_type: str
) -> None:
    response = await client.post(
        "/embeddings", content=b'{"input": "a"}', headers={"content-type": content_type}
    )
    assert response.status_code == 415
    assert "set the header 'Content-Type: application/json'" in response.json()["error"]["message"]
    assert response.json()["detail"] == "Unsupported Media Type"


@pytest.mark.parametrize("headers", [{}, {"content-type": ""}])
@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/embeddings", b'{"input": "a"}'),
        ("/v1/embeddings", b'{"input": "a"}'),
        ("/embed", b'{"inputs": "a"}'),
        ("/v2/embed", b'{"texts": ["a"]}'),
        ("/rerank", b'{"query": "q", "documents": ["a"]}'),
        ("/api/embed", b'{"input": "a"}'),
    ],
)
async def test_a_body_without_a_content_type_is_json(
    path: str, content: bytes, headers: dict[str, str]
) -> None:
    """`requests.post(url, data=json.dumps(body))` sends none, and was refused with 415."""
    async with client_of_kind("embedder") as client:
        response = await client.post(path, content=content, headers=headers)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (rb"cut \ud83d", "cut \ufffd"),
        (rb"\uDE00 low", "\ufffd low"),
        (rb"\ud83d\ud83d\ude00\ude00", "\ufffd\U0001f600\ufffd"),
        (rb"\uD83D\uDE00 \ud83d", "\U0001f600 \ufffd"),
        (rb"\\\ud83d \\ud83d", "\\\ufffd \\ud83d"),
        (rb"\ud83d\n", "\ufffd\n"),
    ],
)
def test_half_of_an_escaped_surrogate_pair_is_a_replacement_character(escaped: bytes, text: str) -> None:
    """JavaScript cuts texts between the halves of an emoji; the JSON is valid, and was refused as a whole."""
    assert parse_json(b'{"input": ["fine", "%b"]}' % escaped) == {"input": ["fine", text]}


def test_a_body_of_cut_pairs_is_not_repaired_without_end() -> None:
    with pytest.raises(RequestValidationError):
        parse_json(b'{"input": "%b"}' % (rb"\ud83d" * (MAX_REPLACEMENTS + 1)))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_is_read_in_every_encoding_of_unicode(encoding: str) -> None:
    """Windows writes a byte order mark; Python's json, which other servers use, reads all of them."""
    assert parse_json('{"input": "Größe \U0001f600"}'.encode(encoding)) == {"input": "Größe \U0001f600"}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_the_number_of_values_is_limited_in_every_encoding(encoding: str) -> None:
    with pytest.raises(RequestValidationError) as caught:
        parse_json(('{"input": [' + "[]," * (MAX_COUNTS.num_containers + 1) + '"\u2200"]}').encode(encoding))
    assert "lists and objects" in caught.value.errors()[0]["msg"]


def test_a_body_that_is_no_text_is_said_to_be_none() -> None:
    with pytest.raises(RequestValidationError) as caught:
        parse_json(b'{"input": "\xff"}')
    assert caught.value.errors()[0]["msg"] == (
        "the body is not valid JSON: invalid start byte at byte 11 of text in utf-8; send UTF-8"
    )


@pytest.mark.parametrize("user", ["name", 7, 1.5, True, None, {"id": 1}])
async def test_a_user_of_any_type_is_ignored(client: httpx.AsyncClient, user: Any) -> None:
    assert (await embed(client, user=user)).status_code == 200


async def test_of_a_member_that_is_given_twice_the_last_counts(client: httpx.AsyncClient) -> None:
    """As in Python, Go and JavaScript."""
    response = await client.post("/embeddings", content=b'{"input": "a", "input": "abc"}')
    assert response.json()["data"][0]["embedding"][0] == 3


async def test_inputs_are_not_echoed_at_length(client: httpx.AsyncClient) -> None:
    members = {"input": ["x" * 100_000] * 10 + [None], "model": ["y" * 100_000]}
    response = await client.post("/embeddings", json=members)
    assert response.status_code == 422
    assert len(response.content) < 2000


async def test_a_declared_length_over_the_limit_is_a_413() -> None:
    async with client_of(build_debug_app(max_body_bytes=1000)) as client:
        assert (await embed(client, "a" * 900)).status_code == 200
        response = await embed(client, "a" * 1000)
    assert response.status_code == 413
    error = response.json()["error"]
    assert "more than 1000 bytes" in error["message"]
    assert "--max-body-bytes" in error["message"]
    assert response.json()["detail"] == HTTPStatus(413).phrase


async def test_a_stream_over_the_limit_is_a_413_before_its_end() -> None:
    num_sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_sent
        while True:
            num_sent += 1
            yield b"a" * 100

    async with client_of(build_debug_app(max_body_bytes=1000)) as client:
        response = await client.post("/embeddings", content=endless(), headers=JSON)
    assert response.status_code == 413
    assert num_sent == 11


async def test_bodies_under_way_have_a_size_together_and_make_room_when_they_end() -> None:
    """Each is within its own limit; who finds no room is told to come again."""
    app = build_debug_app(max_body_bytes=1000, max_total_body_bytes=5600)
    may_end = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b'{"input": "' + b"a" * 900
        await may_end.wait()
        yield b'"}'

    async with client_of(app) as client:
        first = asyncio.create_task(client.post("/embeddings", content=slow(), headers=JSON))
        while app.state.context.memory.num_held_bytes < 900:
            await asyncio.sleep(0.01)
        assert (await embed(client, "a" * 500)).status_code == 200
        refused = await embed(client, "a" * 900)
        assert refused.status_code == 503
        assert "more than 5600 bytes" in refused.json()["error"]["message"]
        assert refused.headers["retry-after"] == "1"
        may_end.set()
        assert (await first).status_code == 200
        assert app.state.context.memory.num_held_bytes == 0
        assert (await embed(client, "a" * 900)).status_code == 200


async def test_a_body_in_pieces_is_put_together(client: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b'{"inp', b'ut": "he', b'llo"}'):
            yield piece

    response = await client.post("/embeddings", content=pieces(), headers=JSON)
    assert response.json()["usage"]["total_tokens"] == 5


@pytest.mark.parametrize(
    ("members", "answers_with"),
    [
        ({"documents": ["a"], "top_k": 1, "texts": ["a"]}, "data"),
        ({"documents": ["a"], "top_k": None}, "data"),
        ({"documents": ["a"]}, "results"),
    ],
)
async def test_a_body_is_of_the_first_schema_that_one_of_its_members_tells(
    members: dict[str, Any], answers_with: str
) -> None:
    async with client_of_kind("reranker") as client:
        assert answers_with in (await client.post("/rerank", json={"query": "q", **members})).json()
        bare = await client.post("/rerank", json={"query": "q", "texts": ["a"]})
        untold = await client.post("/rerank", json={"query": "q"})
    assert isinstance(bare.json(), list)
    assert untold.json()["error"]["param"] == "documents"
