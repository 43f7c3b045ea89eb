"""NVIDIA NIM's `/v1/ranking` and where it tells its health. Its `/v1/embeddings` is ours as well.

Knows nothing of how a model scores; scores are raw, as NIM answers logits.
Source: https://docs.nvidia.com/nim/nemo-retriever/text-reranking/latest/reference.html
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body
from starlette.requests import Request
from starlette.responses import Response

from infinity_emb.server.api_route import ApiRoute, Task
from infinity_emb.server.disconnect import cancel_on_disconnect
from infinity_emb.server.encode import json_response
from infinity_emb.server.error_docs import NOT_READY
from infinity_emb.server.schemas.nim import (
    NIM_RANKING_EXAMPLES,
    NimHealth,
    NimRankingRequest,
    NimRankingResponse,
)
from infinity_emb.server.system_routes import SystemRoutes

# As those of the server's own health, open to everybody and never under the prefix.
NIM_HEALTH_PATHS = ("/v1/health/live", "/v1/health/ready")


class NimRoutes(Task):
    """The handler, over one app's engines."""

    def routes(self) -> list[ApiRoute]:
        """Where the handler is reached."""
        return [ApiRoute.of_task("/ranking", self.nim_ranking, NimRankingResponse)]

    async def nim_ranking(
        self,
        body: Annotated[NimRankingRequest, Body(openapi_examples=NIM_RANKING_EXAMPLES)],
        request: Request,
    ) -> Response:
        """Passages by how well they answer a query, best first, with the model's raw scores."""
        self.check_num_inputs(body.passages, "passages")
        engine, _ = self.served.choose(body.model_name, "rerank")
        ranked, num_tokens = await cancel_on_disconnect(
            request,
            engine.rerank(
                query=body.query.text,
                docs=body.passages,
                raw_scores=True,
                truncation=body.truncate or "model",
            ),
        )
        rankings = [{"index": each.index, "logit": each.relevance_score} for each in ranked]
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        return json_response({"rankings": rankings, "usage": usage})


class NimHealthRoutes:
    """The server's own health and readiness, where orchestrators of NIM containers ask for them."""

    def __init__(self, system: SystemRoutes) -> None:
        self._system = system

    async def nim_health_live(self) -> Response:
        """200 while every model's device thread lives, as `/health`."""
        await self._system.health()
        return _healthy("Service is live.")

    async def nim_health_ready(self) -> Response:
        """200 when every model answers, as `/ready`."""
        await self._system.ready()
        return _healthy("Service is ready.")

    def add_to(self, router: APIRouter) -> None:
        """Register the handlers."""
        for path, answer in zip(NIM_HEALTH_PATHS, (self.nim_health_live, self.nim_health_ready), strict=True):
            router.add_api_route(
                path,
                answer,
                operation_id=answer.__name__,
                response_model=NimHealth,
                responses={503: NOT_READY},
            )


def _healthy(message: str) -> Response:
    return json_response({"object": "health.response", "message": message, "ready": True})
