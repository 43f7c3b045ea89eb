"""`truncate_prompt_tokens` of a request, on every route that has it; the fake has a token per character."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.tiny_server import client_of_kind

pytestmark = pytest.mark.anyio

ROUTES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "embed": ("embedder", "/embeddings", {"input": "abcdef"}),
    "rerank": ("reranker", "/rerank", {"query": "", "documents": ["abcde"]}),
    "classify": ("classifier", "/classify", {"input": "abcdef"}),
}
every_route = pytest.mark.parametrize(("kind", "path", "body"), ROUTES.values(), ids=ROUTES)


async def post(kind: str, path: str, body: dict[str, Any], **members: Any) -> httpx.Response:
    async with client_of_kind(kind) as client:
        return await client.post(path, json={**body, **members})


@every_route
@pytest.mark.parametrize(("limit", "num_tokens"), [(4, 4), (-1, 6), (None, 6), (2**31 - 1, 6)])
async def test_a_text_is_cut_at_the_limit_of_its_request(
    kind: str, path: str, body: dict[str, Any], limit: int | None, num_tokens: int
) -> None:
    answer = (await post(kind, path, body, truncate_prompt_tokens=limit)).json()
    assert answer["usage"]["prompt_tokens"] == num_tokens


@every_route
async def test_a_text_over_it_is_refused_where_nothing_may_be_cut(
    kind: str, path: str, body: dict[str, Any]
) -> None:
    response = await post(kind, path, body, truncate_prompt_tokens=4, truncate=False)
    assert response.status_code == 400
    assert "has 6 tokens, the limit is 4" in response.json()["error"]["message"]


@every_route
@pytest.mark.parametrize("limit", [0, -2, "many", 1.5, 2**31])
async def test_what_is_no_limit_is_a_422(kind: str, path: str, body: dict[str, Any], limit: object) -> None:
    response = await post(kind, path, body, truncate_prompt_tokens=limit)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "truncate_prompt_tokens"


async def test_the_side_says_what_is_kept() -> None:
    body = {"input": "abcdef", "outputs": ["sparse"], "truncate_prompt_tokens": 2, "truncate": "START"}
    answer = (await post("embedder", "/embeddings", body)).json()
    assert answer["data"][0]["sparse_embedding"]["indices"] == [ord("e"), ord("f")]
