"""`/embed_sparse`, in the shape of Text Embeddings Inference."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, Field

from infinity_emb.server.inputs import Inputs
from infinity_emb.server.schemas.task import TaskRequest, Truncate, TruncationSide


class SparseRequest(TaskRequest):
    """Texts; `model` is ours."""

    input_member: ClassVar[str] = "inputs"

    inputs: Inputs
    truncate: Truncate = None
    truncation_direction: TruncationSide = None
    prompt_name: str | None = Field(None, description="The model's own prompt that goes before each text.")


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
