"""`/rerank`: documents by how well they answer a query. Knows nothing of how a model scores them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import Body
from starlette.requests import Request
from starlette.responses import Response

from infinity_emb.primitives import RerankReturnType
from infinity_emb.server.api_route import ApiRoute, Task
from infinity_emb.server.dialects.cohere import document_object, is_coheres_client
from infinity_emb.server.dialects.tei import TeiRoutes
from infinity_emb.server.disconnect import cancel_on_disconnect
from infinity_emb.server.encode import json_response, task_response
from infinity_emb.server.error_docs import TASK_ERRORS, TEI_ERRORS, VOYAGE_ERRORS, either
from infinity_emb.server.members import agreed, choose_truncation
from infinity_emb.server.schemas.rerank import RERANK_EXAMPLES, RerankRequest, RerankResponse
from infinity_emb.server.schemas.tei import TEI_RERANK_EXAMPLES, TeiRanked, TeiRerankRequest
from infinity_emb.server.schemas.voyage import (
    VOYAGE_RERANK_EXAMPLES,
    VoyageRerankRequest,
    VoyageRerankResponse,
)

# A member tells whose client asks: `top_k`, or `texts` instead of `documents`.
Form = Annotated[
    RerankRequest | VoyageRerankRequest | TeiRerankRequest,
    Body(openapi_examples={**RERANK_EXAMPLES, **VOYAGE_RERANK_EXAMPLES, **TEI_RERANK_EXAMPLES}),
]


class RerankRoute(Task):
    """The handler, over one app's engines."""

    def routes(self) -> list[ApiRoute]:
        """Where the handler is reached."""
        answer = RerankResponse | VoyageRerankResponse | list[TeiRanked]
        errors = either(either(TASK_ERRORS, VOYAGE_ERRORS), TEI_ERRORS)
        return [ApiRoute.of_task("/rerank", self.rerank, answer, errors=errors)]

    async def rerank(self, body: Form, request: Request) -> Response:
        """Documents by how well they answer a query, best first; a reranker scores as `CrossEncoder` does.

        Other models compare vectors: by the cosine, by the dot product of sparse ones, or by MaxSim.
        """
        if isinstance(body, TeiRerankRequest):
            tei = TeiRoutes(served=self.served, max_client_batch_size=self.max_client_batch_size)
            return await tei.tei_rerank(body, request)
        top_n, truncate = body.top_n, body.truncate
        if is_voyages := isinstance(body, VoyageRerankRequest):
            top_n = agreed(top_n=top_n, top_k=body.top_k)
            truncate = agreed(truncate=truncate, truncation=body.truncation)
        self.check_num_inputs(body.documents, "documents")
        engine, _ = self.served.choose(body.model_name, "rerank")
        ranked, num_tokens = await cancel_on_disconnect(
            request,
            engine.rerank(
                query=body.query,
                docs=body.documents,
                raw_scores=bool(body.raw_scores),
                top_n=top_n,
                prompt=agreed(instruction=body.instruction, prompt=body.prompt),
                prompt_name=body.prompt_name,
                truncation=choose_truncation(truncate, truncation_side=body.truncation_side),
                max_tokens=body.truncate_prompt_tokens,
            ),
        )
        write_document = document_object if is_coheres_client(request) else str
        results = _describe_ranking(ranked, write_document if body.return_documents else None)
        name = engine.engine_args.served_model_name
        if is_voyages:
            usage = {"total_tokens": num_tokens}
            return json_response({"object": "list", "data": results, "model": name, "usage": usage})
        return task_response("rerank", {"results": results}, model=name, num_tokens=num_tokens)


def _describe_ranking(
    ranked: Sequence[RerankReturnType], write_document: Callable[[str], object] | None
) -> list[dict[str, object]]:
    # The document is left out rather than null: some clients take null for a broken answer.
    return [
        {
            "relevance_score": each.relevance_score,
            "index": each.index,
            **({"document": write_document(each.document)} if write_document else {}),
        }
        for each in ranked
    ]
