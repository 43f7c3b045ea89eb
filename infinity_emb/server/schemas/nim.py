"""NVIDIA NIM's `/v1/ranking`, `/v1/health/live` and `/v1/health/ready`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field

from infinity_emb.server.inputs import Documents
from infinity_emb.server.schemas.task import TaskRequest, Truncate, Usage


class NimText(BaseModel):
    """An object with a text."""

    text: str


class NimRankingRequest(TaskRequest):
    """A query, and the passages that may answer it."""

    input_member: ClassVar[str] = "passages"

    query: NimText = Field(description="What is searched for.")
    passages: Documents
    truncate: Truncate = None


NIM_RANKING_EXAMPLES: dict[str, Any] = {
    "passages": {
        "summary": "Two passages by how well they answer",
        "value": {
            "query": {"text": "Where is Munich?"},
            "passages": [{"text": "The sky is blue."}, {"text": "Munich is in Germany."}],
            "truncate": "END",
        },
    },
}


class NimRanking(BaseModel):
    """The raw score of the passage at `index` of the request."""

    index: int
    logit: float


class NimRankingResponse(BaseModel):
    """The passages, best first."""

    rankings: list[NimRanking]
    usage: Usage


class NimHealth(BaseModel):
    """The check that was asked for has passed."""

    object: Literal["health.response"]
    message: str
    ready: Literal[True]
