"""NVIDIA NIM's `/v1/ranking` and health routes; its `/v1/embeddings` is the same as ours.

Source: https://docs.nvidia.com/nim/nemo-retriever/text-reranking/latest/reference.html
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field
from starlette.responses import Response

from infinity_emb.engine.results import RerankOptions
from infinity_emb.server.requests.call import Call
from infinity_emb.server.responses.error_docs import NOT_READY, Errors
from infinity_emb.server.responses.json_vectors import json_response
from infinity_emb.server.routes.system import health, ready
from infinity_emb.server.routing import Endpoint, Form
from infinity_emb.server.schemas.common import TaskRequest, Truncate, Usage
from infinity_emb.server.schemas.inputs import Documents

# Like the server's own health routes: open to everybody and never below the prefix.
HEALTH_PATHS = ("/v1/health/live", "/v1/health/ready")


class NimText(BaseModel):
    """An object with a text."""

    text: str = Field(description="The text.")


class NimRankingRequest(TaskRequest):
    """A query and the passages to rank."""

    input_field: ClassVar[str] = "passages"

    query: NimText = Field(description="The search query.")
    passages: Documents
    truncate: Truncate = None


NIM_RANKING_EXAMPLES: dict[str, Any] = {
    "passages": {
        "summary": "Two passages ranked by relevance",
        "value": {
            "query": {"text": "Where is Munich?"},
            "passages": [{"text": "The sky is blue."}, {"text": "Munich is in Germany."}],
            "truncate": "END",
        },
    }
}


class NimRanking(BaseModel):
    """The raw score of one passage."""

    index: int = Field(description="Index of the passage in the request.")
    logit: float = Field(description="The model's raw score.")


class NimRankingResponse(BaseModel):
    """The passages, best first."""

    rankings: list[NimRanking]
    usage: Usage


class NimHealth(BaseModel):
    """A passed health check."""

    object: Literal["health.response"]
    message: str = Field(description="The state in words.")
    ready: Literal[True]


async def nim_ranking(body: NimRankingRequest, call: Call) -> Response:
    """Rank passages by relevance to a query.

    Returns the passages best first, with the raw scores of the model.
    """
    engine, _ = call.resolve(body, "rerank", body.passages)
    options = RerankOptions(raw_scores=True, truncation=body.truncate or "model")
    ranked, num_tokens = await engine.scorer.rerank(body.query.text, body.passages, options)
    rankings = [{"index": passage.index, "logit": passage.relevance_score} for passage in ranked]
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return json_response({"rankings": rankings, "usage": usage})


async def nim_health_live(call: Call) -> Response:
    """Check that the server is alive.

    Works like `/health`.
    """
    await health(call)
    return _healthy("Service is live.")


async def nim_health_ready(call: Call) -> Response:
    """Check that the server is ready.

    Works like `/ready`.
    """
    await ready(call)
    return _healthy("Service is ready.")


def _healthy(message: str) -> Response:
    return json_response({"object": "health.response", "message": message, "ready": True})


ENDPOINTS = [
    Endpoint("/ranking", [Form(nim_ranking, NimRankingRequest, NimRankingResponse, NIM_RANKING_EXAMPLES)])
]
HEALTH_ENDPOINTS = [
    Endpoint(
        path,
        [Form(handler, None, NimHealth, errors=Errors({503: NOT_READY}))],
        method="GET",
        is_prefixed=False,
    )
    for path, handler in zip(HEALTH_PATHS, (nim_health_live, nim_health_ready), strict=True)
]
