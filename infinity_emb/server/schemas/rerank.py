"""`/rerank`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, PrivateAttr, model_validator

from infinity_emb.preprocessing.prompts import MAX_PROMPT_CHARS
from infinity_emb.server.request_errors import body_error
from infinity_emb.server.schemas.common import (
    REFUSED,
    DocumentTokens,
    MaxTokens,
    OptionalInt,
    QueryTokens,
    Refusal,
    TaskRequest,
    TaskResponse,
    Truncate,
    TruncationSide,
    UseActivation,
)
from infinity_emb.server.schemas.inputs import Documents, list_documents

# They are looked up in each document.
MAX_RANK_FIELDS = 64
# Levels of nested lists and objects in a document; orjson writes 254, and reads 1,024.
MAX_DOCUMENT_DEPTH = 200
REFUSED_IN_RANKINGS: Mapping[str, Refusal] = {
    "max_chunks_per_doc": Refusal("documents are not split; send parts of a document as documents"),
    "relevant_spans": Refusal(
        "documents are scored as a whole; leave it out", harmless=(None, {}, {"mode": "disabled"})
    ),
    "return_embeddings": Refusal("send the texts to /embeddings", harmless=(None, False)),
}


class RerankRequest(TaskRequest):
    """A query and the documents to rank."""

    input_field: ClassVar[str] = "documents"
    refused: ClassVar[Mapping[str, Refusal]] = {**REFUSED, **REFUSED_IN_RANKINGS}

    query: str = Field(description="The search query.")
    documents: Documents
    top_n: OptionalInt = Field(
        None, ge=0, description="Number of documents to return; 0 means all, the default."
    )
    return_documents: bool | None = Field(
        None, description="Include the texts of the documents in the response."
    )
    rank_fields: list[str] | None = Field(
        None,
        max_length=MAX_RANK_FIELDS,
        description="For documents that are objects: fields to read instead of `text`, joined by newlines in"
        " this order; a field that is named twice is read once.",
    )
    raw_scores: bool | None = Field(
        None, description="Return scores without applying the model's activation function."
    )
    use_activation: UseActivation = None
    max_tokens_per_query: QueryTokens = None
    max_tokens_per_doc: DocumentTokens = None
    instruction: str | None = Field(
        None, max_length=MAX_PROMPT_CHARS, description="Instruction for rerankers that accept one."
    )
    prompt: str | None = Field(None, max_length=MAX_PROMPT_CHARS, description="Alias of `instruction`.")
    prompt_name: str | None = Field(None, description="Name of one of the model's instructions.")
    truncate: Truncate = None
    truncation_side: TruncationSide = None
    truncate_prompt_tokens: MaxTokens = None

    _given_documents: list[Any] = PrivateAttr(default_factory=list)

    def get_document(self, index: int) -> dict[str, Any]:
        """Return a document as an object, as the client sent it, or with the field `text`."""
        given = self._given_documents[index]
        return given if isinstance(given, dict) else {"text": given}

    @model_validator(mode="before")
    @classmethod
    def _join_fields(cls, body: dict[str, Any]) -> dict[str, Any]:
        fields, documents = body.get("rank_fields"), body.get("documents")
        if not isinstance(fields, list) or not isinstance(documents, list) or len(fields) > MAX_RANK_FIELDS:
            return body  # the fields' own checks say what is wrong
        names = dict.fromkeys(name for name in fields if isinstance(name, str))
        return {**body, "documents": [_join_lines(document, names) for document in documents]}

    # Defined last, so that it sees the documents first.
    @model_validator(mode="wrap")
    @classmethod
    def _keep_documents(cls, body: Any, validate: ModelWrapValidatorHandler[RerankRequest]) -> RerankRequest:
        request = validate(body)
        request._given_documents = list_documents(body["documents"])
        for position, document in enumerate(request._given_documents):
            if isinstance(document, dict) and _is_too_deep(document):
                message = f"item {position} has over {MAX_DOCUMENT_DEPTH} levels of nested lists and objects"
                raise body_error("too_deep", message, loc=["documents"])
        return request


def _is_too_deep(document: Mapping[str, Any]) -> bool:
    containers: list[Any] = [document]
    for _ in range(MAX_DOCUMENT_DEPTH):
        values = (each.values() if isinstance(each, dict) else each for each in containers)
        containers = [value for each in values for value in each if isinstance(value, (dict, list))]
    return bool(containers)


def _join_lines(document: Any, names: Iterable[str]) -> Any:
    """Join fields of an object, each once; return anything else unchanged."""
    if not isinstance(document, dict):
        return document
    lines = [document[name] for name in names if name in document]
    return "\n".join(lines) if lines and set(map(type, lines)) == {str} else document


_QUERY = "Where is Munich?"
_DOCUMENTS = ["The sky is blue.", "Munich is in Germany.", "Munich has many beer gardens."]

RERANK_EXAMPLES: dict[str, Any] = {
    "documents": {"summary": "Rank three documents", "value": {"query": _QUERY, "documents": _DOCUMENTS}},
    "top": {
        "summary": "Return the best document with its text",
        "value": {"query": _QUERY, "documents": _DOCUMENTS, "top_n": 1, "return_documents": True},
    },
    "raw_scores": {
        "summary": "Scores without the activation function",
        "value": {"query": _QUERY, "documents": [{"text": text} for text in _DOCUMENTS], "raw_scores": True},
    },
}


class DocumentObject(BaseModel):
    """A document as an object: as the request has it, or with its text."""

    model_config = ConfigDict(extra="allow")

    text: str | None = Field(None, description="The text of the document.")


class RankedDocument(BaseModel):
    """The score of one document."""

    relevance_score: float = Field(description="Relevance to the query; higher is better.")
    index: int = Field(description="Index of the document in the request.")
    document: str | None = Field(None, description="Only present with `return_documents`.")


class RerankResponse(TaskResponse):
    """The documents, best first."""

    object: Literal["rerank"]
    results: list[RankedDocument]


class RankedObject(BaseModel):
    """The score of one document, and the document as an object."""

    relevance_score: float = Field(description="Relevance to the query; higher is better.")
    index: int = Field(description="Index of the document in the request.")
    document: DocumentObject | None = Field(None, description="Left out if `return_documents` is false.")


class RerankObjectsResponse(TaskResponse):
    """The documents, best first."""

    object: Literal["rerank"]
    results: list[RankedObject]
