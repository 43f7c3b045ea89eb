"""Cohere's `/v1/embed`, `/v2/embed` and `/v2/rerank`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema, model_validator
from pydantic.config import JsonDict

from infinity_emb.server.dialects.cohere.inputs import unwrap_inputs
from infinity_emb.server.schemas.common import MaxTokens, OptionalInt, TaskRequest, Truncate
from infinity_emb.server.schemas.inputs import parse_inputs
from infinity_emb.server.schemas.rerank import RankedObject, RerankRequest

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]


def parse_optional_inputs(value: Any) -> list[str] | None:
    """Parse like `parse_inputs`, or return None for null. Raises PydanticCustomError."""
    return None if value is None else parse_inputs(value)


OptionalInputs = Annotated[
    list[str] | None,
    PlainValidator(parse_optional_inputs),
    WithJsonSchema(
        {"anyOf": [{"type": "array", "items": {"type": "string"}, "minItems": 1}, {"type": "null"}]}
    ),
]


_PART: JsonDict = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "text": {"type": "string"},
        "image_url": {"type": "object", "properties": {"url": {"type": "string"}}},
    },
}
_ITEM: JsonDict = {
    "type": "object",
    "properties": {"content": {"type": "array", "items": _PART, "minItems": 1, "maxItems": 1}},
    "required": ["content"],
}


class CohereEmbedRequest(TaskRequest):
    """Texts or images."""

    input_field: ClassVar[str] = "texts"

    texts: OptionalInputs = Field(None, description="Texts to embed; they may be empty.")
    images: OptionalInputs = Field(
        None, description="Images to embed instead of texts, as data URIs or URLs."
    )
    inputs: Any = Field(
        None,
        json_schema_extra={"anyOf": [{"type": "array", "items": _ITEM}, {"type": "null"}]},
        description="Texts or images as objects with a `content` of one part, instead of the other two.",
    )
    input_type: str | None = Field(
        None,
        description="`search_query`, `search_document`, `classification`, `clustering` or `image`, or one of"
        " the model's tasks or prompts.",
    )
    embedding_types: list[EmbeddingType] | None = Field(
        None,
        max_length=6,
        description="Data types to return, each under its name; `float` by default. /v1 returns a plain list"
        " by default.",
    )
    output_dimension: OptionalInt = Field(
        None, description="Truncate vectors to this many dimensions and normalize them."
    )
    truncate: Truncate = None
    max_tokens: MaxTokens = None

    @model_validator(mode="before")
    @classmethod
    def _unwrap_inputs(cls, body: Mapping[str, Any]) -> Mapping[str, Any]:
        return unwrap_inputs(body)


class CohereRerankRequest(RerankRequest):
    """A query and the documents to rank; its errors have Cohere's format."""


_TEXT = "Munich is in Germany."

COHERE_EMBED_EXAMPLES: dict[str, Any] = {
    "documents": {
        "summary": "Two documents",
        "value": {"texts": [_TEXT, "The sky is blue."], "input_type": "search_document"},
    },
    "formats": {
        "summary": "A query in two data types",
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
        "summary": "Return the best of two documents",
        "value": {"query": "Where is Munich?", "documents": ["The sky is blue.", _TEXT], "top_n": 1},
    }
}


class ApiVersion(BaseModel):
    """The version of Cohere's API."""

    version: Literal["1", "2"]


class Units(BaseModel):
    """Usage counts."""

    input_tokens: int | None = Field(None, description="Number of tokens processed.")
    images: int | None = Field(None, description="Number of images.")
    search_units: int | None = Field(None, description="Number of searches.")


class Meta(BaseModel):
    """Version and usage; some of Cohere's clients require `billed_units`."""

    api_version: ApiVersion
    billed_units: Units
    tokens: Units | None = None


class CohereResponse(BaseModel):
    """Fields of all responses."""

    id: str = Field(description="Unique id of the response.")
    meta: Meta


# Outside of the class below, whose field `float` hides the type.
Floats = list[list[float]]


class EmbeddingsByType(BaseModel):
    """The vectors of all inputs, in order, in each requested data type."""

    float: Floats | None = Field(None, description="float32.")
    int8: list[list[int]] | None = Field(None, description="Quantized to -128 to 127.")
    uint8: list[list[int]] | None = Field(None, description="Quantized to 0 to 255.")
    binary: list[list[int]] | None = Field(None, description="8 dimensions per number, minus 128.")
    ubinary: list[list[int]] | None = Field(None, description="8 dimensions per number.")
    base64: list[str] | None = Field(None, description="Little-endian float32.")


class CohereEmbedResponse(CohereResponse):
    """The response of /v2, and of /v1 with `embedding_types`."""

    response_type: Literal["embeddings_by_type"]
    embeddings: EmbeddingsByType
    texts: list[str] | None = Field(None, description="The texts of the request.")


class CohereFloatsResponse(CohereResponse):
    """The response of /v1 without `embedding_types`."""

    response_type: Literal["embeddings_floats"]
    embeddings: Floats = Field(description="One vector per input.")
    texts: list[str] | None = Field(None, description="The texts of the request.")


class CohereRerankResponse(CohereResponse):
    """The documents, best first."""

    results: list[RankedObject]
