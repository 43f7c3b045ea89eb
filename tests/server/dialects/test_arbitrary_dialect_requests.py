"""Whatever JSON a member of another vendor's request holds, the answer is one that its clients can read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infinity_emb.server.dialects.cohere.schemas import CohereEmbedRequest, CohereRerankRequest
from infinity_emb.server.dialects.nim import NimRankingRequest
from infinity_emb.server.dialects.ollama.schemas import (
    OllamaEmbedRequest,
    OllamaPromptRequest,
    OllamaShowRequest,
)
from infinity_emb.server.dialects.vllm.schemas import (
    VllmClassifyRequest,
    VllmPoolingRequest,
    VllmScoreRequest,
)
from infinity_emb.server.schemas.common import TaskRequest
from tests.server.test_arbitrary_requests import anything
from tests.support.tiny_server import build_debug_app, client_of, debug_args

pytestmark = pytest.mark.anyio

EMBED = {"texts": ["a"], "model": "embedder"}
# Path, schema, a body that fits, and what an answer to one that does not must have.
REQUESTS: list[tuple[str, type[TaskRequest], dict[str, Any], str]] = [
    ("/v1/embed", CohereEmbedRequest, EMBED, "message"),
    ("/v2/embed", CohereEmbedRequest, EMBED, "message"),
    ("/v2/rerank", CohereRerankRequest, {"query": "q", "documents": ["a"], "model": "reranker"}, "message"),
    ("/api/embed", OllamaEmbedRequest, {"input": ["a"], "model": "embedder"}, "error"),
    ("/api/embeddings", OllamaPromptRequest, {"prompt": "a", "model": "embedder"}, "error"),
    ("/ranking", NimRankingRequest, {"query": {"text": "q"}, "passages": ["a"]}, "error"),
    ("/api/show", OllamaShowRequest, {"model": "embedder"}, "error"),
    ("/score", VllmScoreRequest, {"queries": "q", "documents": ["a"], "model": "reranker"}, "error"),
    ("/pooling", VllmPoolingRequest, {"input": "a", "model": "embedder"}, "error"),
    ("/classify", VllmClassifyRequest, {"input": "a", "use_activation": True}, "error"),
]
MEMBERS = [(place, name) for place, each in enumerate(REQUESTS) for name in each[1].model_fields]


@pytest.fixture
async def servers(anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    kinds = ("embedder", "reranker", "classifier")
    async with client_of(build_debug_app(*(debug_args(f"{kind}?kind={kind}") for kind in kinds))) as client:
        yield client


@given(value=anything, member=st.sampled_from(MEMBERS))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_value_of_one_field_is_served_or_refused(
    servers: httpx.AsyncClient, value: Any, member: tuple[int, str]
) -> None:
    place, name = member
    path, _, fitting, answered = REQUESTS[place]
    content = json.dumps({**fitting, name: value})
    response = await servers.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 404, 422), response.text
    if response.status_code != 200:
        assert response.json()[answered]
