"""What clients of Voyage send to `/rerank` and `/embeddings`, and what they read."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.tiny_server import build_debug_app, client_of, client_of_kind, debug_args, embed

pytestmark = pytest.mark.anyio

DOCUMENTS = ["aaa", "a", {"text": "aaaa"}, "aa"]


async def rerank(client: httpx.AsyncClient, **members: Any) -> httpx.Response:
    return await client.post("/v1/rerank", json={"query": "q", "documents": DOCUMENTS, **members})


async def test_a_body_with_top_k_is_answered_as_voyage_does() -> None:
    async with client_of_kind("reranker") as client:
        response = await rerank(client, top_k=2, truncation=True, model="debug")
    assert response.json() == {
        "object": "list",
        "data": [{"relevance_score": 2.0, "index": 2}, {"relevance_score": 1.5, "index": 0}],
        "model": "debug",
        "usage": {"total_tokens": 18},
    }


@pytest.mark.parametrize("members", [{"top_k": None}, {"top_k": None, "truncation": None, "top_n": None}])
async def test_top_k_may_be_null_for_all_documents(members: dict[str, Any]) -> None:
    async with client_of_kind("reranker") as client:
        body = (await rerank(client, **members)).json()
    assert [each["index"] for each in body["data"]] == [2, 0, 3, 1]


async def test_infinitys_fields_count_beside_voyages() -> None:
    async with client_of_kind("reranker") as client:
        members = {"return_documents": True, "raw_scores": True, "top_n": 1}
        body = (await rerank(client, top_k=None, **members)).json()
    assert body["data"] == [{"relevance_score": 4.0, "index": 2, "document": "aaaa"}]


async def test_a_body_without_top_k_is_answered_as_ever() -> None:
    async with client_of_kind("reranker") as client:
        body = (await rerank(client, truncation=True)).json()
    assert (body["object"], len(body["results"])) == ("rerank", 4)


async def test_truncation_means_truncate() -> None:
    async with client_of_kind("reranker") as client:
        long = {"documents": ["a" * 9000], "top_k": 1}
        refused = await rerank(client, **long, truncation=False)
        cut = await rerank(client, **long, truncation=True)
    assert (refused.status_code, "input 0 has" in refused.json()["detail"]) == (400, True)
    assert cut.status_code == 200


@pytest.mark.parametrize(
    ("members", "param", "part"),
    [
        ({"top_k": -1}, "top_k", "greater than or equal to 0"),
        ({"top_k": 1, "top_n": 2}, "top_k", "send only one"),
        ({"top_k": 1, "truncate": True, "truncation": False}, "truncation", "send only one"),
        ({"top_k": 1, "documents": "a"}, "documents", "must be a list of texts"),
    ],
)
async def test_errors_are_a_text_that_names_the_field(members: dict[str, Any], param: str, part: str) -> None:
    async with client_of_kind("reranker") as client:
        response = await rerank(client, **members)
    assert response.status_code == 422
    assert list(response.json()) == ["detail"]
    assert response.json()["detail"].startswith(f"{param}: ")
    assert part in response.json()["detail"]


@pytest.mark.parametrize("truncation", [True, None, "no"])
@pytest.mark.parametrize(("members", "status"), [({"dimensions": 14}, 400), ({"dimensions": "a"}, 422)])
async def test_embeddings_with_truncation_have_errors_of_a_text_too(
    client: httpx.AsyncClient, truncation: Any, members: dict[str, Any], status: int
) -> None:
    response = await embed(client, truncation=truncation, **members)
    assert response.status_code == (422 if truncation == "no" else status)
    assert list(response.json()) == ["detail"]
    assert isinstance(response.json()["detail"], str)


async def test_errors_of_a_body_that_is_not_told_are_the_servers_own(client: httpx.AsyncClient) -> None:
    json_type = {"content-type": "application/json"}
    for path in ("/embeddings", "/rerank"):
        assert "error" in (await client.post(path, content=b"{", headers=json_type)).json()
        assert "error" in (await client.post(path, json={})).json()


@pytest.mark.parametrize(
    ("output_dtype", "dtype", "expected"),
    [
        (None, "<f4", [5.0] * 13),
        ("float", "<f4", [5.0] * 13),
        ("ubinary", "u1", np.packbits([1] * 13)),
        ("binary", "i1", [127, 120]),
    ],
)
async def test_base64_holds_the_numbers_of_the_output_dtype(
    output_dtype: str | None, dtype: str, expected: Any
) -> None:
    body = {
        "input_type": "document",
        "truncation": True,
        "output_dimension": None,
        "output_dtype": output_dtype,
    }
    async with client_of(build_debug_app(debug_args())) as client:
        answer = (await embed(client, ["hello"], encoding_format="base64", **body)).json()
    given = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), dtype)
    np.testing.assert_array_equal(given, expected)
    assert answer["usage"]["total_tokens"] == 5


@pytest.mark.parametrize("truncation", [False, "NONE"])
async def test_truncation_of_texts_means_truncate(client: httpx.AsyncClient, truncation: Any) -> None:
    long = "a" * 9000
    refused = await embed(client, long, truncation=truncation)
    assert (refused.status_code, "9000 tokens" in refused.json()["detail"]) == (400, True)
    differs = await embed(client, long, truncation=True, truncate=False)
    assert (differs.status_code, "send only one" in differs.json()["detail"]) == (422, True)
    assert (await embed(client, long, truncation=True)).status_code == 200
    assert (await embed(client, long, truncation=True, truncate=True)).status_code == 200
