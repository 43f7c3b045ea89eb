"""`/embed_sparse`, in the shape of Text Embeddings Inference."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from infinity_emb.server.inputs import TextsOrIds
from infinity_emb.server.schemas.tei import PROMPT_NAME, TeiRequest


class SparseRequest(TeiRequest):
    """Texts; `model` is ours."""

    inputs: TextsOrIds
    prompt_name: str | None = Field(None, description=PROMPT_NAME)


SPARSE_EXAMPLES: dict[str, Any] = {
    "texts": {"summary": "Two texts", "value": {"inputs": ["Munich is in Germany.", "The sky is blue."]}},
    "truncate": {
        "summary": "Cut a text that is too long at its end",
        "value": {"inputs": "Munich is in Germany.", "truncate": True, "truncation_direction": "Right"},
    },
}


class SparseEntry(BaseModel):
    """A value that is not 0."""

    index: int
    value: float


# For each input its entries, the indices ascending.
SparseResponse = list[list[SparseEntry]]
