from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest

from infinity_emb.server.dialects.tei.sparse import SparseRequest
from tests.support.tiny_server import client_of_kind, embed

pytestmark = pytest.mark.anyio


async def embed_sparse(client: httpx.AsyncClient, inputs: Any = "hello", **members: Any) -> httpx.Response:
    return await client.post("/embed_sparse", json={"inputs": inputs, **members})


def check_error(response: httpx.Response, status: int, kind: str, part: str) -> None:
    """An error as clients of Text Embeddings Inference read it."""
    assert response.status_code == status
    error = response.json()
    assert list(error) == ["error", "error_type"]
    assert error["error_type"] == kind
    assert part in error["error"]


def entries_of(text: str) -> list[dict[str, float]]:
    """How often each code point occurs, which is what the fake answers."""
    indices, counts = np.unique(list(map(ord, text)), return_counts=True)
    return [
        {"index": int(index), "value": float(count)} for index, count in zip(indices, counts, strict=True)
    ]


@pytest.mark.parametrize("kind", ["sparse", "embedder"])
@pytest.mark.parametrize("path", ["/embed_sparse", "/v1/embed_sparse"])
async def test_each_text_has_its_entries_by_ascending_index(kind: str, path: str) -> None:
    texts = ["hello", "a", "", "zaz"]
    async with client_of_kind(kind) as client:
        response = await client.post(path, json={"inputs": texts})
    assert response.json() == [entries_of(text) for text in texts]


async def test_one_text_is_a_list_of_one() -> None:
    async with client_of_kind("sparse") as client:
        assert (await embed_sparse(client, "hello")).json() == [entries_of("hello")]


async def test_prompts_count() -> None:
    async with client_of_kind("sparse") as client:
        named = (await embed_sparse(client, "hello", prompt_name="query")).json()
        suffix = (await embed_sparse(client, "hello", model="debug:query")).json()
    assert named == suffix == [entries_of("query: hello")]


@pytest.mark.parametrize(
    ("members", "kept"),
    [
        ({}, "ab"),
        ({"truncate": None, "truncation_direction": None}, "ab"),
        ({"truncate": True, "truncation_direction": "Right"}, "ab"),
        ({"truncate": True, "truncation_direction": "Left"}, "bc"),
        ({"truncation_direction": "left"}, "bc"),
    ],
)
async def test_a_long_text_is_cut_where_it_is_asked_for(members: dict[str, Any], kept: str) -> None:
    async with client_of_kind("sparse") as client:
        response = await embed_sparse(client, "a" + "b" * 8191 + "c", **members)
    assert [entry["index"] for entry in response.json()[0]] == list(map(ord, kept))


async def test_a_long_text_is_refused_where_it_may_not_be_cut() -> None:
    async with client_of_kind("sparse") as client:
        response = await embed_sparse(client, ["a", "a" * 9000], truncate=False, truncation_direction="Right")
    check_error(response, 422, "Validation", "input 1 has 9000 tokens")


async def test_null_is_the_same_as_not_given() -> None:
    names = SparseRequest.model_fields.keys() - {"inputs"}
    async with client_of_kind("sparse") as client:
        assert (await embed_sparse(client, **dict.fromkeys(names))).json() == [entries_of("hello")]


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("auto", "does not have the outputs 'sparse'; it has 'dense'"),
        ("multivector", "does not have the outputs 'sparse'; it has 'multivector'"),
        ("reranker", "it supports rerank"),
    ],
)
async def test_a_model_without_sparse_vectors_says_what_it_can(kind: str, part: str) -> None:
    async with client_of_kind(kind) as client:
        response = await embed_sparse(client)
    check_error(response, 424, "Backend", part)


@pytest.mark.parametrize(
    ("body", "param", "part"),
    [
        ({}, "inputs", "Field required"),
        ({"input": "a"}, "inputs", "Field required"),
        ({"inputs": []}, None, "the list is empty"),
        ({"inputs": "a", "truncation_direction": "Up"}, "truncation_direction", "'left' or 'right'"),
        ({"inputs": "a", "truncation_direction": 3}, "truncation_direction", "'left' or 'right'"),
        ({"inputs": "a", "prompt_name": 3}, "prompt_name", "valid string"),
        ({"inputs": ["a"] * 4}, "inputs", "has 4 items, the limit is 3"),
    ],
)
async def test_a_field_that_does_not_fit_is_named(body: dict[str, Any], param: str | None, part: str) -> None:
    async with client_of_kind("sparse", max_client_batch_size=3) as client:
        response = await client.post("/embed_sparse", json=body)
    check_error(response, *((400, "Empty") if param is None else (422, "Validation")), part)
    assert (param or "inputs") in response.json()["error"]


async def test_both_routes_answer_the_same_numbers() -> None:
    async with client_of_kind("embedder") as client:
        [entries] = (await embed_sparse(client)).json()
        member = (await embed(client, outputs=["sparse"])).json()["data"][0]["sparse_embedding"]
    assert member == {
        "indices": [entry["index"] for entry in entries],
        "values": [entry["value"] for entry in entries],
    }
