from __future__ import annotations

from typing import Any

import pytest

from infinity_emb.server.schemas.nim import NimRankingRequest
from tests.server.tiny_server import build_debug_app, client_of, client_of_kind, debug_args

pytestmark = pytest.mark.anyio

PASSAGES = ["aaa", "a", "aaaa", "aa"]
REQUEST = {"model": "debug", "query": {"text": "q"}, "passages": [{"text": each} for each in PASSAGES]}


@pytest.mark.parametrize("path", ["/ranking", "/v1/ranking"])
async def test_the_best_comes_first_with_its_raw_score(path: str) -> None:
    async with client_of_kind("reranker") as client:
        response = await client.post(path, json={**REQUEST, "truncate": "END"})
    num_tokens = sum(len("q") + 1 + len(passage) for passage in PASSAGES)
    assert response.json() == {
        "rankings": [
            {"index": 2, "logit": 4.0},
            {"index": 0, "logit": 3.0},
            {"index": 3, "logit": 2.0},
            {"index": 1, "logit": 1.0},
        ],
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


async def test_null_is_the_same_as_not_given_and_unknown_members_are_ignored() -> None:
    nulls = dict.fromkeys(NimRankingRequest.model_fields)
    async with client_of_kind("reranker") as client:
        plain = (await client.post("/v1/ranking", json=REQUEST)).json()
        response = await client.post("/v1/ranking", json={**nulls, **REQUEST, "model": None, "more": 1})
    assert response.json() == plain


@pytest.mark.parametrize(
    ("members", "status", "part"),
    [
        ({"query": "q"}, 422, "query"),
        ({"query": {}}, 422, "query"),
        ({"passages": []}, 422, "the list is empty"),
        ({"passages": [{"text": "a"}] * 5}, 422, "passages: has 5 members, the limit is 4"),
        ({"model": "other"}, 400, "['debug']"),
        ({"passages": [{"text": "a" * 9000}], "truncate": "NONE"}, 400, "tokens"),
    ],
)
async def test_errors_are_as_those_of_the_embeddings_route(members: Any, status: int, part: str) -> None:
    async with client_of_kind("reranker", max_client_batch_size=4) as client:
        response = await client.post("/v1/ranking", json={**REQUEST, **members})
    assert response.status_code == status
    assert part in response.json()["error"]["message"]


async def test_the_only_reranker_answers_a_request_that_names_no_model() -> None:
    app = build_debug_app(*(debug_args(f"{kind}?kind={kind}") for kind in ("embedder", "reranker")))
    async with client_of(app) as client:
        body = (await client.post("/v1/ranking", json={**REQUEST, "model": None})).json()
    assert body["rankings"][0] == {"index": 2, "logit": 4.0}
