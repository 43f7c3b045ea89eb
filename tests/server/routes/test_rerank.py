from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest

from infinity_emb.backends.fake import MAX_TOKENS
from infinity_emb.preprocessing.prompts import MAX_PROMPT_CHARS
from infinity_emb.server.schemas.rerank import RerankRequest
from tests.support.tiny_server import build_debug_app, client_of, client_of_kind, debug_args

pytestmark = pytest.mark.anyio

# The fake reranker scores a document by its length, and halves the raw score.
DOCUMENTS = ["aaa", "a", "aaaa", "aa"]


async def rerank(client: httpx.AsyncClient, documents: Any = DOCUMENTS, **members: Any) -> httpx.Response:
    return await client.post("/rerank", json={"query": "q", "documents": documents, **members})


async def test_answer_has_infinitys_fields_in_their_order() -> None:
    async with client_of_kind("reranker") as client:
        body = (await rerank(client)).json()
    assert list(body) == ["object", "results", "model", "usage", "id", "created"]
    assert (body["object"], body["model"]) == ("rerank", "debug")
    assert [list(each) for each in body["results"]] == [["relevance_score", "index"]] * 4
    num_tokens = sum(len("q") + 1 + len(document) for document in DOCUMENTS)
    assert body["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    assert body["id"].startswith("infinity-")
    assert isinstance(body["created"], int)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
async def test_the_best_comes_first_with_its_place_in_the_request(path: str) -> None:
    async with client_of_kind("reranker") as client:
        request = {"query": "q", "documents": DOCUMENTS, "return_documents": False}
        response = await client.post(path, json=request)
    assert response.json()["results"] == [
        {"relevance_score": 2.0, "index": 2},
        {"relevance_score": 1.5, "index": 0},
        {"relevance_score": 1.0, "index": 3},
        {"relevance_score": 0.5, "index": 1},
    ]


async def test_raw_scores_leave_the_activation_out() -> None:
    async with client_of_kind("reranker") as client:
        results = (await rerank(client, raw_scores=True)).json()["results"]
    assert [each["relevance_score"] for each in results] == [4.0, 3.0, 2.0, 1.0]


async def test_only_so_many_of_the_best_with_their_texts() -> None:
    async with client_of_kind("reranker") as client:
        results = (await rerank(client, top_n=2, return_documents=True)).json()["results"]
        as_texts = (await rerank(client, top_n="2", return_documents="true")).json()["results"]
        assert len((await rerank(client, top_n=100)).json()["results"]) == 4
    assert as_texts == results
    assert [(each["index"], each["document"]) for each in results] == [(2, "aaaa"), (0, "aaa")]


async def test_documents_are_left_out_unless_asked_for() -> None:
    async with client_of_kind("reranker") as client:
        for members in (
            {},
            {"return_documents": "false"},
            {"return_documents": 0},
            {"return_documents": None},
        ):
            results = (await rerank(client, **members)).json()["results"]
            assert all("document" not in each for each in results), members
        assert (await rerank(client, return_documents="perhaps")).status_code == 422


async def test_documents_may_be_objects_with_a_text() -> None:
    mixed = ["aaa", {"text": "a", "title": "ignored"}, {"text": "aaaa"}, "aa"]
    async with client_of_kind("reranker") as client:
        answers = [(await rerank(client, each, return_documents=True)).json() for each in (DOCUMENTS, mixed)]
    assert answers[0]["results"] == answers[1]["results"]


async def test_null_is_the_same_as_not_given() -> None:
    names = RerankRequest.model_fields.keys() - {"query", "documents"}
    async with client_of_kind("reranker") as client:
        response = await rerank(client, **dict.fromkeys(names))
        assert response.json()["results"] == (await rerank(client)).json()["results"]


async def test_scores_are_not_rounded() -> None:
    async with client_of_kind("embedder") as client:
        [result] = (await rerank(client, ["b"])).json()["results"]
    ones = np.ones(13, dtype=np.float32)
    unit = ones / np.linalg.norm(ones)
    np.testing.assert_allclose(result["relevance_score"], float(unit @ unit), atol=1e-6)


@pytest.mark.parametrize("name", ["instruction", "prompt"])
async def test_an_instruction_reaches_the_model(name: str) -> None:
    async with client_of_kind("reranker") as client:
        plain = (await rerank(client)).json()["usage"]["total_tokens"]
        told = (await rerank(client, **{name: "seven: "})).json()["usage"]["total_tokens"]
        named = (await rerank(client, prompt_name="query")).json()["usage"]["total_tokens"]
    assert told == named == plain + 7 * len(DOCUMENTS)


async def test_models_that_are_made_for_vectors_rank_too() -> None:
    for kind in ("embedder", "sparse", "multivector"):
        async with client_of_kind(kind) as client:
            assert len((await rerank(client)).json()["results"]) == 4


@pytest.mark.parametrize("kind", ["classifier", "auto"])
async def test_a_model_that_cannot_rank_says_what_it_can(kind: str) -> None:
    async with client_of_kind(kind) as client:
        response = await rerank(client)
    assert response.status_code == 400
    assert "does not support 'rerank'; it supports" in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "model"


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
async def test_a_query_that_is_too_long_is_named(path: str) -> None:
    """The error named `documents`."""
    async with client_of_kind("embedder") as client:
        request = {"query": "q" * (MAX_TOKENS + 1), "documents": ["d"], "truncate": False}
        response = await client.post(path, json=request)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "query"


@pytest.mark.parametrize(
    ("members", "param", "part"),
    [
        ({"documents": "a"}, "documents", "must be a list of texts, or of objects with a `text`, not a text"),
        ({"documents": []}, "documents", "the list is empty"),
        ({"documents": None}, "documents", "not null"),
        ({"documents": ["a", {"title": "b"}]}, "documents", "item 1 is an object"),
        ({"documents": [{"text": 3}]}, "documents", "item 0 is an object"),
        ({"documents": [["a", "b"]]}, "documents", "item 0 is a list"),
        ({"documents": [[1, 2]]}, "documents", "token ids are not accepted"),
        ({"query": None}, "query", "valid string"),
        ({"query": ["q"]}, "query", "valid string"),
        ({"top_n": -1}, "top_n", "greater than or equal to 0"),
        ({"top_n": 1.5}, "top_n", "valid integer"),
        ({"raw_scores": "some"}, "raw_scores", "valid boolean"),
        ({"return_documents": 3}, "return_documents", "valid boolean"),
        ({"truncate": "MIDDLE"}, "truncate", "must be true or false"),
        ({"instruction": "a", "prompt": "b"}, "prompt", "conflicts with 'instruction'"),
        ({"truncate": "END", "truncation_side": "left"}, "truncation_side", "conflicts with 'truncate'"),
    ],
)
async def test_a_field_that_does_not_fit_is_named(members: dict[str, Any], param: str, part: str) -> None:
    async with client_of_kind("reranker") as client:
        response = await client.post("/rerank", json={"query": "q", "documents": ["d"], **members})
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["param"] == param
    assert part in error["message"]
    assert response.json()["detail"][0]["loc"] == ["body", param]


async def test_too_many_documents_are_refused_with_the_limit() -> None:
    async with client_of_kind("reranker", max_client_batch_size=3) as client:
        assert (await rerank(client, ["a"] * 3)).status_code == 200
        response = await rerank(client, ["a"] * 4)
    assert response.status_code == 422
    assert response.json()["error"]["message"].startswith("documents: has 4 items, the limit is 3; send")


async def test_a_document_that_is_too_long_is_named_by_its_place() -> None:
    long = "a" * 9000
    async with client_of_kind("reranker") as client:
        assert (await rerank(client, ["a", long])).status_code == 200
        response = await rerank(client, ["a", long], truncate=False)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "documents"
    assert error["message"].startswith("input 1 has 9002 tokens, the limit is 8192")


async def test_a_document_that_fails_is_a_500_that_names_it() -> None:
    async with client_of(build_debug_app(debug_args("debug?kind=reranker&nan_on=bad"))) as client:
        response = await rerank(client, ["fine", "bad"])
        assert (await rerank(client, ["fine"])).status_code == 200
    assert response.status_code == 500
    assert "input 1" in response.json()["error"]["message"]


@pytest.mark.parametrize("member", ["prompt", "instruction"])
async def test_an_instruction_has_a_limit(member: str) -> None:
    async with client_of_kind("reranker") as client:
        response = await rerank(client, **{member: "p" * (MAX_PROMPT_CHARS + 1)})
    assert response.status_code == 422
    assert f"at most {MAX_PROMPT_CHARS} characters" in response.json()["error"]["message"]
