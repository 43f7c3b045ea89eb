"""`/rerank`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field, model_validator

from infinity_emb.prompts import MAX_PROMPT_CHARS
from infinity_emb.server.inputs import Documents
from infinity_emb.server.schemas.task import MaxTokens, TaskAnswer, TaskRequest, Truncate, TruncationSide


class RerankRequest(TaskRequest):
    """A query, and the documents that may answer it."""

    input_member: ClassVar[str] = "documents"

    query: str = Field(description="What is searched for.")
    documents: Documents
    top_n: int | None = Field(None, gt=0, description="Only so many of the best; all where not given.")
    return_documents: bool | None = Field(None, description="Answer the documents' texts too.")
    rank_fields: list[str] | None = Field(
        None,
        description="Of documents that are objects, the members to read instead of `text`, in this order, one"
        " a line.",
    )
    raw_scores: bool | None = Field(None, description="Leave out the model's activation function.")
    instruction: str | None = Field(
        None,
        max_length=MAX_PROMPT_CHARS,
        description="What counts as an answer, for rerankers that take an instruction.",
    )
    prompt: str | None = Field(None, max_length=MAX_PROMPT_CHARS, description="The same as `instruction`.")
    prompt_name: str | None = Field(None, description="One of the model's own instructions.")
    truncate: Truncate = None
    truncation_side: TruncationSide = None
    truncate_prompt_tokens: MaxTokens = None

    @model_validator(mode="before")
    @classmethod
    def _read_fields(cls, members: dict[str, Any]) -> dict[str, Any]:
        fields, documents = members.get("rank_fields"), members.get("documents")
        if not isinstance(fields, list) or not isinstance(documents, list):
            return members
        return {**members, "documents": [_text_of(each, fields) for each in documents]}


def _text_of(document: Any, fields: list[Any]) -> Any:
    """Of an object with any of the fields their lines; anything else is left as it is."""
    if not isinstance(document, dict):
        return document
    lines = [document[name] for name in fields if isinstance(name, str) and name in document]
    return "\n".join(lines) if lines and set(map(type, lines)) == {str} else document


_QUERY = "Where is Munich?"
_DOCUMENTS = ["The sky is blue.", "Munich is in Germany.", "Munich has many beer gardens."]

RERANK_EXAMPLES: dict[str, Any] = {
    "documents": {
        "summary": "Three documents by how well they answer",
        "value": {"query": _QUERY, "documents": _DOCUMENTS},
    },
    "top": {
        "summary": "The best one, with its text",
        "value": {"query": _QUERY, "documents": _DOCUMENTS, "top_n": 1, "return_documents": True},
    },
    "raw_scores": {
        "summary": "Scores as the model computes them",
        "value": {"query": _QUERY, "documents": [{"text": each} for each in _DOCUMENTS], "raw_scores": True},
    },
}


class DocumentObject(BaseModel):
    """A document, as Cohere's own clients read it."""

    text: str


class RankedDocument(BaseModel):
    """The score of the document at `index` of the request."""

    relevance_score: float
    index: int
    document: str | DocumentObject | None = Field(
        None,
        description="Left out unless `return_documents` asks for it; an object for Cohere's own clients.",
    )


class RerankResponse(TaskAnswer):
    """The documents, best first."""

    object: Literal["rerank"]
    results: list[RankedDocument]
