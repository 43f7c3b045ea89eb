"""`/rerank`: documents by how well they answer a query. Knows nothing of how a model scores them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Body
from starlette.requests import Request
from starlette.responses import Response

from infinity_emb.primitives import RerankReturnType
from infinity_emb.server.api_route import ApiRoute, Task
from infinity_emb.server.dialects.tei import TeiRoutes
from infinity_emb.server.disconnect import cancel_on_disconnect
from infinity_emb.server.encode import task_response
from infinity_emb.server.members import agreed, choose_truncation
from infinity_emb.server.schemas.rerank import RERANK_EXAMPLES, RerankRequest, RerankResponse
from infinity_emb.server.schemas.tei import TEI_RERANK_EXAMPLES, TeiRanked, TeiRerankRequest

# The member that holds the documents tells whose client asks: `documents`, or `texts`.
Form = Annotated[
    RerankRequest | TeiRerankRequest, Body(openapi_examples={**RERANK_EXAMPLES, **TEI_RERANK_EXAMPLES})
]


class RerankRoute(Task):
    """The handler, over one app's engines."""

    def routes(self) -> list[ApiRoute]:
        """Where the handler is reached."""
        return [ApiRoute.of_task("/rerank", self.rerank, RerankResponse | list[TeiRanked])]

    async def rerank(self, body: Form, request: Request) -> Response:
        """Documents by how well they answer a query, best first; a reranker scores as `CrossEncoder` does.

        Other models compare vectors: by the cosine, by the dot product of sparse ones, or by MaxSim.
        """
        if isinstance(body, TeiRerankRequest):
            tei = TeiRoutes(served=self.served, max_client_batch_size=self.max_client_batch_size)
            return await tei.tei_rerank(body, request)
        self.check_num_inputs(body.documents, "documents")
        engine, _ = self.served.choose(body.model_name, "rerank")
        ranked, num_tokens = await cancel_on_disconnect(
            request,
            engine.rerank(
                query=body.query,
                docs=body.documents,
                raw_scores=bool(body.raw_scores),
                top_n=body.top_n,
                prompt=agreed(instruction=body.instruction, prompt=body.prompt),
                prompt_name=body.prompt_name,
                truncation=choose_truncation(body.truncate, truncation_side=body.truncation_side),
            ),
        )
        results = _describe_ranking(ranked, with_documents=bool(body.return_documents))
        name = engine.engine_args.served_model_name
        return task_response("rerank", {"results": results}, model=name, num_tokens=num_tokens)


def _describe_ranking(ranked: Sequence[RerankReturnType], *, with_documents: bool) -> list[dict[str, object]]:
    # The document is left out rather than null: some clients take null for a broken answer.
    return [
        {
            "relevance_score": each.relevance_score,
            "index": each.index,
            **({"document": each.document} if with_documents else {}),
        }
        for each in ranked
    ]
