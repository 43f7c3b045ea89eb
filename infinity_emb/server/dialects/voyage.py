"""Voyage's forms of `/embeddings` and `/rerank`, recognised by fields that only its clients send.

Source: version 0.5 of the client `voyageai`, which sends `truncation` with texts and `top_k` with
documents, null too, and prints `detail` of an error, which must be a string.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field
from starlette.responses import Response

from infinity_emb.server.error_format import Failure, FormattedError
from infinity_emb.server.requests.call import Call
from infinity_emb.server.requests.fields import merge_aliases
from infinity_emb.server.responses.error_docs import TASK_ERRORS, Errors, with_error_model
from infinity_emb.server.responses.json_vectors import json_response
from infinity_emb.server.routes.embeddings import embeddings
from infinity_emb.server.routes.rerank import describe_ranking, get_text_writer, rank
from infinity_emb.server.routing import Form
from infinity_emb.server.schemas.common import OptionalInt, Truncate
from infinity_emb.server.schemas.embeddings import EmbeddingRequest, EmbeddingResponse
from infinity_emb.server.schemas.rerank import RankedDocument, RerankRequest


class VoyageError(BaseModel):
    """An error response."""

    detail: str = Field(description="The error message.")


def format_error(failure: Failure) -> FormattedError:
    """Return the message alone."""
    return FormattedError(failure.status, {"detail": failure.message})


class VoyageEmbeddingRequest(EmbeddingRequest):
    """An embeddings request; its errors have Voyage's format."""


class VoyageRerankRequest(RerankRequest):
    """A rerank request with Voyage's names for two fields and Voyage's response format."""

    top_k: OptionalInt = Field(
        None, ge=0, description="Alias of `top_n`. If present, null too, the response has Voyage's format."
    )
    truncation: Truncate = None


class TotalUsage(BaseModel):
    """Token counts."""

    total_tokens: int = Field(description="Number of tokens processed.")


class VoyageRerankResponse(BaseModel):
    """The documents, best first."""

    object: Literal["list"]
    data: list[RankedDocument]
    model: str = Field(description="Served name of the model.")
    usage: TotalUsage


VOYAGE_RERANK_EXAMPLES: dict[str, Any] = {
    "top_k": {
        "summary": "Voyage: `top_k` instead of `top_n`",
        "value": {
            "query": "Where is Munich?",
            "documents": ["The sky is blue.", "Munich is in Germany."],
            "top_k": 1,
            "truncation": True,
        },
    }
}


async def voyage_rerank(body: VoyageRerankRequest, call: Call) -> Response:
    """Rank documents by relevance to a query, in Voyage's response format."""
    ranking = await rank(
        body,
        call,
        top_n=merge_aliases(top_n=body.top_n, top_k=body.top_k),
        truncate=merge_aliases(truncate=body.truncate, truncation=body.truncation),
    )
    return json_response(
        {
            "object": "list",
            "data": describe_ranking(ranking, get_text_writer(body)),
            "model": ranking.model,
            "usage": {"total_tokens": ranking.num_tokens},
        }
    )


ERRORS = Errors(with_error_model(TASK_ERRORS, VoyageError), format_error)

_RERANK = Form(
    voyage_rerank,
    VoyageRerankRequest,
    VoyageRerankResponse,
    VOYAGE_RERANK_EXAMPLES,
    errors=ERRORS,
    discriminators=frozenset({"top_k"}),
)
# Path of an endpoint → more forms of it.
FORMS = {
    "/embeddings": [
        Form(
            embeddings,
            VoyageEmbeddingRequest,
            EmbeddingResponse,
            errors=ERRORS,
            discriminators=frozenset({"truncation"}),
        )
    ],
    "/rerank": [_RERANK],
    "/v1/rerank": [_RERANK],
}
