"""`/embeddings` and `/rerank` as clients of Voyage ask, told by members that only they send.

Source: version 0.5 of the client `voyageai`, which sends `truncation` with texts and `top_k` with documents,
null too, and prints `detail` of an error, which must be a text.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field

from infinity_emb.server.error_shape import ErrorShape, Failure, ShapedError
from infinity_emb.server.schemas.embeddings import EmbeddingRequest
from infinity_emb.server.schemas.rerank import RankedDocument, RerankRequest
from infinity_emb.server.schemas.task import Truncate


class VoyageError(BaseModel):
    """What went wrong."""

    detail: str


def shape_error(failure: Failure) -> ShapedError:
    """The message alone."""
    return ShapedError(failure.status, {"detail": failure.message})


class VoyageEmbeddingRequest(EmbeddingRequest):
    """The same as any other, but for its errors."""

    told_by: ClassVar[frozenset[str]] = frozenset({"truncation"})
    error_shape: ClassVar[ErrorShape | None] = shape_error


class VoyageRerankRequest(RerankRequest):
    """The same with Voyage's words for two members; it is answered as Voyage does."""

    told_by: ClassVar[frozenset[str]] = frozenset({"top_k"})
    error_shape: ClassVar[ErrorShape | None] = shape_error

    top_k: int | None = Field(
        None, gt=0, description="The same as `top_n`; with it, null too, the answer has Voyage's form."
    )
    truncation: Truncate = None


VOYAGE_RERANK_EXAMPLES: dict[str, Any] = {
    "top_k": {
        "summary": "As clients of Voyage ask, and are answered",
        "value": {
            "query": "Where is Munich?",
            "documents": ["The sky is blue.", "Munich is in Germany."],
            "top_k": 1,
            "truncation": True,
        },
    },
}


class TotalUsage(BaseModel):
    """Tokens that were read."""

    total_tokens: int


class VoyageRerankResponse(BaseModel):
    """The documents, best first."""

    object: Literal["list"]
    data: list[RankedDocument]
    model: str
    usage: TotalUsage
