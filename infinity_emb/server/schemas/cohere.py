"""Cohere's `/v1/embed`, `/v2/embed` and `/v2/rerank`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema

from infinity_emb.server.error_shape import ErrorShape, Failure, ShapedError
from infinity_emb.server.inputs import Documents, parse_inputs
from infinity_emb.server.schemas.task import TaskRequest, Truncate


def shape_error(failure: Failure) -> ShapedError:
    """Cohere's clients show `message`."""
    return ShapedError(failure.status, {"message": failure.message})


EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]


def parse_optional_inputs(value: Any) -> list[str] | None:
    """As `parse_inputs`, and null is nothing. Raises PydanticCustomError."""
    return None if value is None else parse_inputs(value)


OptionalInputs = Annotated[
    list[str] | None,
    PlainValidator(parse_optional_inputs),
    WithJsonSchema(
        {"anyOf": [{"type": "array", "items": {"type": "string"}, "minItems": 1}, {"type": "null"}]}
    ),
]


class CohereEmbedRequest(TaskRequest):
    """Texts, or images."""

    input_member: ClassVar[str] = "texts"
    error_shape: ClassVar[ErrorShape | None] = shape_error

    texts: OptionalInputs = Field(None, description="Texts to embed; a text may be empty.")
    images: OptionalInputs = Field(None, description="Images instead, as data URIs or URLs.")
    input_type: str | None = Field(
        None,
        description="`search_query`, `search_document`, `classification`, `clustering` or `image`, or one of"
        " the model's own tasks and prompts.",
    )
    embedding_types: list[EmbeddingType] | None = Field(
        None,
        max_length=6,
        description="Number formats to answer, each under its name. Without it they are `float`; of /v1"
        " then a list.",
    )
    output_dimension: int | None = Field(
        None, description="Keep that many values of each vector, scaled back to length 1."
    )
    truncate: Truncate = None


class CohereRerankRequest(TaskRequest):
    """A query, and the documents that may answer it."""

    input_member: ClassVar[str] = "documents"
    error_shape: ClassVar[ErrorShape | None] = shape_error

    query: str = Field(description="What is searched for.")
    documents: Documents
    top_n: int | None = Field(None, gt=0, description="Only so many of the best; all where not given.")
    max_tokens_per_doc: int | None = Field(
        None, description="Ignored: a document is cut where the model's limit is."
    )


_TEXT = "Munich is in Germany."

COHERE_EMBED_EXAMPLES: dict[str, Any] = {
    "documents": {
        "summary": "Two documents",
        "value": {"texts": [_TEXT, "The sky is blue."], "input_type": "search_document"},
    },
    "formats": {
        "summary": "A query in two number formats",
        "value": {
            "texts": ["Where is Munich?"],
            "input_type": "search_query",
            "embedding_types": ["float", "ubinary"],
            "truncate": "END",
        },
    },
}
COHERE_RERANK_EXAMPLES: dict[str, Any] = {
    "documents": {
        "summary": "The better of two documents",
        "value": {"query": "Where is Munich?", "documents": ["The sky is blue.", _TEXT], "top_n": 1},
    },
}


class ApiVersion(BaseModel):
    """Which of Cohere's interfaces answered."""

    version: Literal["1", "2"]


class Units(BaseModel):
    """Tokens that were read, and searches."""

    input_tokens: int | None = None
    search_units: int | None = None


class Meta(BaseModel):
    """Some of Cohere's clients need `billed_units`."""

    api_version: ApiVersion
    billed_units: Units
    tokens: Units | None = None


class CohereAnswer(BaseModel):
    """What all answers have."""

    id: str
    meta: Meta


# Outside of the class below, which has a member `float`.
Floats = list[list[float]]


class EmbeddingsByType(BaseModel):
    """The vectors of each input, in order, in each number format that was asked for."""

    float: Floats | None = None
    int8: list[list[int]] | None = None
    uint8: list[list[int]] | None = None
    binary: list[list[int]] | None = Field(None, description="8 values in a number, minus 128.")
    ubinary: list[list[int]] | None = Field(None, description="8 values in a number.")
    base64: list[str] | None = Field(None, description="Little-endian float32.")


class CohereEmbedResponse(CohereAnswer):
    """The answer of /v2, and of /v1 where it is asked for types."""

    response_type: Literal["embeddings_by_type"]
    embeddings: EmbeddingsByType
    texts: list[str] | None = None


class CohereFloatsResponse(CohereAnswer):
    """The answer of /v1 where it is not asked for types."""

    response_type: Literal["embeddings_floats"]
    embeddings: Floats
    texts: list[str] | None = None


class CohereRanked(BaseModel):
    """The score of the document at `index` of the request."""

    index: int
    relevance_score: float


class CohereRerankResponse(CohereAnswer):
    """The documents, best first."""

    results: list[CohereRanked]


class CohereError(BaseModel):
    """Any answer of 400 and above."""

    message: str
