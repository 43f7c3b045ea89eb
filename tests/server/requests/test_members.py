"""Members that no schema has: ignored, unless they would change the result or are misspelt."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.tiny_server import client_of_kind

pytestmark = pytest.mark.anyio

BODIES: dict[str, dict[str, Any]] = {
    "/embeddings": {"input": "a"},
    "/pooling": {"input": "a"},
    "/rerank": {"query": "q", "documents": ["a"]},
    "/v2/rerank": {"query": "q", "documents": ["a"]},
    "/score": {"text_1": "q", "text_2": "a"},
    "/embed": {"inputs": "a"},
    "/v2/embed": {"texts": ["a"]},
    "/api/embed": {"input": "a"},
}


async def post(path: str, body: dict[str, Any]) -> httpx.Response:
    async with client_of_kind("embedder") as client:
        return await client.post(path, json=body)


@pytest.mark.parametrize("path", list(BODIES))
async def test_a_member_without_a_meaning_is_ignored(path: str) -> None:
    body = {**BODIES[path], "cache_salt": "x", "temperature": 0.5, "stream": False, "x" * 5000: 1}
    assert (await post(path, body)).status_code == 200


@pytest.mark.parametrize("path", list(BODIES))
@pytest.mark.parametrize("name", ["add_special_tokens", "chat_template", "messages"])
async def test_a_member_that_would_change_the_result_is_refused_by_name(path: str, name: str) -> None:
    """`add_special_tokens: false` was ignored: 16 tokens were embedded where 14 were asked for."""
    response = await post(path, {**BODIES[path], name: False})
    assert response.status_code in (400, 422)
    assert f"{name}: is not supported; " in response.text
    assert (await post(path, {**BODIES[path], name: None})).status_code == 200


@pytest.mark.parametrize("path", list(BODIES))
async def test_the_value_that_changes_nothing_is_accepted(path: str) -> None:
    assert (await post(path, {**BODIES[path], "add_special_tokens": True})).status_code == 200


@pytest.mark.parametrize(
    ("path", "name", "nearest"),
    [
        ("/embeddings", "dimension", "dimensions"),
        ("/embeddings", "promt_name", "prompt_name"),
        ("/embeddings", "embedding_types", "embedding_type"),
        ("/embed", "normalise", "normalize"),
        ("/rerank", "return_document", "return_documents"),
        ("/api/embed", "dimension", "dimensions"),
        ("/v2/embed", "output_dimensions", "output_dimension"),
        ("/score", "use_activations", "use_activation"),
    ],
)
async def test_a_misspelt_member_is_refused_with_the_right_name(path: str, name: str, nearest: str) -> None:
    """It was ignored: the vectors came in all dimensions, or without the prompt."""
    response = await post(path, {**BODIES[path], name: 4})
    assert response.status_code in (400, 422)
    assert f"{name}: is unknown; did you mean '{nearest}'?" in response.text


@pytest.mark.parametrize(
    ("path", "body", "missing", "given"),
    [
        ("/embeddings", {"texts": ["a"]}, "input", "texts"),
        ("/embeddings", {"inputs": "a"}, "input", "inputs"),
        ("/embeddings", {"prompts": "a", "imput": "a"}, "input", "imput"),
        ("/embed", {"input": "a"}, "inputs", "input"),
        ("/rerank", {"query": "q", "passages": ["a"]}, "documents", "passages"),
        ("/v2/rerank", {"question": "q", "documents": ["a"]}, "query", "question"),
    ],
)
async def test_the_member_that_stands_for_a_missing_one_is_named(
    path: str, body: dict[str, Any], missing: str, given: str
) -> None:
    response = await post(path, body)
    assert response.status_code in (400, 422)
    assert f"{missing}: Field required; did you mean '{missing}' instead of '{given}'?" in response.text


async def test_chat_messages_are_refused_as_such() -> None:
    """The error said that `input` was missing."""
    response = await post("/v1/embeddings", {"messages": [{"role": "user", "content": "a"}]})
    assert response.json()["error"]["param"] == "messages"
    assert "send texts" in response.json()["error"]["message"]
