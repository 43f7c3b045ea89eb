"""`/classify`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from infinity_emb.server.inputs import TextsOrPairs
from infinity_emb.server.schemas.task import MaxTokens, TaskAnswer, TaskRequest, Truncate, TruncationSide


class ClassifyRequest(TaskRequest):
    """Texts, or pairs of texts, to be labelled."""

    input: TextsOrPairs
    raw_scores: bool | None = Field(None, description="Logits instead of probabilities.")
    truncate: Truncate = None
    truncation_side: TruncationSide = None
    truncate_prompt_tokens: MaxTokens = None


CLASSIFY_EXAMPLES: dict[str, Any] = {
    "texts": {"summary": "Two texts", "value": {"input": ["I like it.", "I do not like it."]}},
    "pairs": {
        "summary": "A text and what it may imply",
        "value": {"input": [["Munich is in Germany.", "Munich is in Europe."]]},
    },
    "raw_scores": {"summary": "Logits", "value": {"input": "I like it.", "raw_scores": True}},
}


class LabelScore(BaseModel):
    """How much a label fits."""

    score: float
    label: str


class ClassifyResponse(TaskAnswer):
    """All labels of each input, the most likely first."""

    object: Literal["classify"]
    data: list[list[LabelScore]]
