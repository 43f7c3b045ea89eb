"""`/classify`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from infinity_emb.server.schemas.common import MaxTokens, TaskRequest, TaskResponse, Truncate, TruncationSide
from infinity_emb.server.schemas.inputs import TextsOrPairs


class ClassifyRequest(TaskRequest):
    """Texts or pairs of texts to classify."""

    input: TextsOrPairs
    raw_scores: bool | None = Field(None, description="Return logits instead of probabilities.")
    truncate: Truncate = None
    truncation_side: TruncationSide = None
    truncate_prompt_tokens: MaxTokens = None


CLASSIFY_EXAMPLES: dict[str, Any] = {
    "texts": {"summary": "Two texts", "value": {"input": ["I like it.", "I do not like it."]}},
    "pairs": {
        "summary": "A premise and a hypothesis",
        "value": {"input": [["Munich is in Germany.", "Munich is in Europe."]]},
    },
    "raw_scores": {"summary": "Logits", "value": {"input": "I like it.", "raw_scores": True}},
}


class LabelScore(BaseModel):
    """The score of one label."""

    score: float = Field(description="Probability, or logit with `raw_scores`.")
    label: str = Field(description="Name of the label.")


class ClassifyResponse(TaskResponse):
    """All labels of each input, the most likely first."""

    object: Literal["classify"]
    data: list[list[LabelScore]]
