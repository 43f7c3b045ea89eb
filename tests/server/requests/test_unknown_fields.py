"""Fields that no schema has: ignored, unless they would change the result or are misspelt."""

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
async def test_a_field_without_a_meaning_is_ignored(path: str) -> None:
    body = {**BODIES[path], "cache_salt": "x", "temperature": 0.5, "stream": False, "x" * 5000: 1}
    assert (await post(path, body)).status_code == 200


@pytest.mark.parametrize("path", list(BODIES))
@pytest.mark.parametrize("name", ["add_special_tokens", "chat_template", "messages"])
async def test_a_field_that_would_change_the_result_is_refused_by_name(path: str, name: str) -> None:
    """`add_special_tokens: false` was ignored: 16 tokens were embedded where 14 were asked for."""
    response = await post(path, {**BODIES[path], name: False})
    assert response.status_code in (400, 422)
    assert f"{name}: is not supported; " in response.text
    assert (await post(path, {**BODIES[path], name: None})).status_code == 200


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ("/embeddings", "texts", ["b"]),
        ("/embeddings", "documents", ["b"]),
        ("/embed", "input", "b"),
        ("/v2/embed", "sentences", ["b"]),
        ("/rerank", "passages", ["b"]),
        ("/api/embed", "inputs", ["a", "b"]),
    ],
)
async def test_inputs_under_two_names_are_refused(path: str, name: str, value: Any) -> None:
    """Those of the other dialect were ignored, and the vectors were fewer than the texts."""
    response = await post(path, {**BODIES[path], name: value})
    assert response.status_code in (400, 422)
    assert f"{name}: conflicts with '" in response.text
    harmless_values: list[Any] = [None, [], [*BODIES[path].values()][-1]]
    for harmless in harmless_values:
        assert (await post(path, {**BODIES[path], name: harmless})).status_code == 200


async def test_null_under_a_misspelt_name_is_left_out() -> None:
    assert (await post("/v2/embed", {"texts": ["a"], "input": None, "input_typ": None})).status_code == 200


async def test_documents_beside_texts_are_refused() -> None:
    body = {"query": "q", "texts": ["a"], "documents": ["b"]}
    response = await post("/rerank", body)
    assert response.status_code == 422
    assert "documents: conflicts with 'texts'" in response.text


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
async def test_a_misspelt_field_is_refused_with_the_right_name(path: str, name: str, nearest: str) -> None:
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
async def test_the_field_that_stands_for_a_missing_one_is_named(
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


@pytest.mark.parametrize(
    ("path", "name", "value", "remedy"),
    [
        ("/embeddings", "max_tokens", 3, "send 'truncate_prompt_tokens'"),
        ("/embeddings", "instruction", "Represent:", "send 'prompt'"),
        ("/embeddings", "normalize_embeddings", True, "send 'normalize'"),
        ("/embeddings", "truncate_dim", 4, "send 'dimensions'"),
        ("/embeddings", "late_chunking_params", {"chunk_size": 3}, "send 'late_chunking'"),
        ("/embeddings", "pooling", "cls", "leave it out"),
        ("/rerank", "instruct", "Find:", "send 'instruction'"),
        ("/rerank", "max_length", 64, "send 'truncate_prompt_tokens'"),
        ("/rerank", "normalize", True, "send 'use_activation'"),
        ("/v2/rerank", "max_tokens", 64, "send 'truncate_prompt_tokens'"),
        ("/score", "raw_scores", True, "send 'use_activation'"),
        ("/embed", "prompt", "query: ", "leave it out"),
        ("/embed", "input_type", "query", "send 'prompt_name'"),
        ("/embed", "embedding_dtype", "int8", "leave it out"),
        ("/v2/embed", "dimensions", 4, "send 'output_dimension'"),
        ("/v2/embed", "prompt_name", "query", "send 'input_type'"),
        ("/api/embed", "input_type", "query", "leave it out"),
        ("/api/embed", "output_dimension", 4, "send 'dimensions'"),
        ("/pooling", "normalize", True, "send 'use_activation'"),
        ("/pooling", "output_dtype", "int8", "leave it out"),
    ],
)
async def test_a_field_of_another_dialect_is_refused_if_it_would_change_the_result(
    path: str, name: str, value: Any, remedy: str
) -> None:
    """It was ignored: a client that spoke the wrong dialect got vectors without its prompt or limit."""
    response = await post(path, {**BODIES[path], name: value})
    assert response.status_code in (400, 422)
    assert f"{name}: is not supported by this route; {remedy}" in response.text


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/embed", {"late_chunking": False, "raw_scores": False, "truncate_prompt_tokens": -1}),
        ("/v2/embed", {"precision": "float", "pooling": ""}),
        ("/rerank", {"embedding_types": ["float"], "relevant_spans": {"mode": "disabled"}}),
        ("/api/embed", {"truncation_side": "right", "chat_template_kwargs": {}}),
    ],
)
async def test_the_usual_value_of_another_dialects_field_is_accepted(
    path: str, fields: dict[str, Any]
) -> None:
    assert (await post(path, {**BODIES[path], **fields})).status_code == 200


@pytest.mark.parametrize("name", ["relevant_spans", "return_embeddings", "chat_template_kwargs"])
async def test_what_rankings_cannot_return_is_refused(name: str) -> None:
    response = await post("/rerank", {**BODIES["/rerank"], name: {"mode": "enabled"}})
    assert f"{name}: is not supported; " in response.text


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/embeddings", "dimensions"),
        ("/embeddings", "output_dimension"),
        ("/embeddings", "timeout"),
        ("/embed", "dimensions"),
        ("/v2/embed", "output_dimension"),
        ("/api/embed", "dimensions"),
        ("/rerank", "top_n"),
        ("/rerank", "max_doc_length"),
        ("/v2/rerank", "max_tokens_per_doc"),
        ("/score", "truncate_prompt_tokens"),
    ],
)
async def test_true_is_no_number(path: str, name: str) -> None:
    """`"dimensions": true` was read as 1: a vector of one dimension."""
    response = await post(path, {**BODIES[path], name: True})
    assert response.status_code in (400, 422)
    assert f"{name}: must be a number, not true or false" in response.text


@pytest.mark.parametrize(
    ("path", "fields", "conflicting"),
    [
        ("/score", {"queries": "another"}, "queries"),
        ("/rerank", {"max_tokens_per_doc": 4, "max_doc_length": 5}, "max_doc_length"),
        ("/rerank", {"use_activation": True, "activation": False}, "activation"),
        ("/api/embed", {"prompt": "another"}, "prompt"),
    ],
)
async def test_two_names_of_a_field_with_different_values_are_refused(
    path: str, fields: dict[str, Any], conflicting: str
) -> None:
    """One of them was ignored."""
    response = await post(path, {**BODIES[path], **fields})
    assert response.status_code in (400, 422)
    assert "conflicts with" in response.text
    assert conflicting in response.text


async def test_null_under_one_name_leaves_the_value_under_another() -> None:
    """Clients send null for what is not set; it hid the other name's value."""
    raw = await post("/rerank", {**BODIES["/rerank"], "raw_scores": True})
    body = {**BODIES["/rerank"], "use_activation": None, "activation": False}
    assert (await post("/rerank", body)).json()["results"] == raw.json()["results"]
    assert (await post("/score", {"text_1": None, "queries": "q", "text_2": "a"})).status_code == 200
