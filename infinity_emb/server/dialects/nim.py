"""NVIDIA NIM's `/v1/ranking`. Its `/v1/embeddings` is ours as well.

Knows nothing of how a model scores; scores are raw, as NIM answers logits.
Source: https://docs.nvidia.com/nim/nemo-retriever/text-reranking/latest/reference.html
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Body
from starlette.requests import Request
from starlette.responses import Response

from infinity_emb.server.api_route import ApiRoute, Task
from infinity_emb.server.disconnect import cancel_on_disconnect
from infinity_emb.server.encode import json_response
from infinity_emb.server.schemas.nim import NIM_RANKING_EXAMPLES, NimRankingRequest, NimRankingResponse


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
