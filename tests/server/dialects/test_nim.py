from __future__ import annotations

from typing import Any

import httpx
import pytest

from infinity_emb.engine.slot import ModelSlot
from infinity_emb.server.dialects.nim import NimRankingRequest
from tests.support.tiny_server import build_debug_app, client_of, client_of_kind, debug_args

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


async def test_null_is_the_same_as_not_given_and_unknown_fields_are_ignored() -> None:
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
        ({"passages": [{"text": "a"}] * 5}, 422, "passages: has 5 items, the limit is 4"),
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


HEALTH = {"/v1/health/live": "Service is live.", "/v1/health/ready": "Service is ready."}


@pytest.mark.parametrize("path", HEALTH)
@pytest.mark.parametrize("config", [{}, {"url_prefix": "/x", "api_key": "key"}, {"url_prefix": "/v1"}])
async def test_health_is_told_at_nims_paths_to_everybody(path: str, config: dict[str, Any]) -> None:
    async with client_of(build_debug_app(**config)) as client:
        response = await client.get(path)
    assert response.status_code == 200
    assert response.json() == {"object": "health.response", "message": HEALTH[path], "ready": True}


async def test_a_model_whose_thread_died_is_not_live(monkeypatch: pytest.MonkeyPatch) -> None:
    async with client_of(build_debug_app()) as client:
        monkeypatch.setattr(ModelSlot, "is_dead", True)
        response = await client.get("/v1/health/live")
    assert (response.status_code, response.json()["error"]["code"]) == (503, 503)


async def test_a_model_that_was_stopped_is_live_but_not_ready() -> None:
    app = build_debug_app()
    async with client_of(app) as client:
        await app.engine_array.astop()
        answers: list[httpx.Response] = [await client.get(path) for path in HEALTH]
        await app.engine_array.astart()
    assert [each.status_code for each in answers] == [200, 503]
    assert "retry-after" in answers[1].headers
