"""What goes over the wire, for pydantic and the OpenAPI document.

Requests are validated: unknown members are ignored, an explicit null is the same as nothing. Responses are
only described; their bytes are made by `encode.py` and a test holds the two together.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, StrictBool

from infinity_emb.primitives import Capability, EmbeddingEncodingFormat, Modality
from infinity_emb.server.inputs import Inputs

# What infinity_client sends where its user names no model.
NO_MODEL_NAMES = ("", "default/not-specified")


class EmbeddingRequest(BaseModel):
    """OpenAI's embeddings request, with `modality` and `truncate` added."""

    input: Inputs
    model: str | None = Field(
        None, description="Served name or alias; the only model that can do it where none is given."
    )
    encoding_format: EmbeddingEncodingFormat | None = Field(
        None, description="`float`: numbers. `base64`: little-endian float32, several times faster to read."
    )
    dimensions: int | None = Field(
        None, description="Keep that many values of each vector, scaled back to length 1; 0 keeps all."
    )
    output_dimension: int | None = Field(None, description="The same as `dimensions`.")
    user: str | None = Field(None, description="Ignored.")
    modality: Modality | None = Field(None, description="What the inputs are; text where not given.")
    truncate: StrictBool | None = Field(
        None, description="false refuses a text that is too long; it is cut otherwise."
    )

    @property
    def model_name(self) -> str | None:
        """The model that the client asked for, or None."""
        return None if self.model in NO_MODEL_NAMES else self.model

    @property
    def matryoshka_dim(self) -> int | None:
        """Values of a vector to keep, or None for all."""
        return self.dimensions or self.output_dimension or None


EMBEDDING_EXAMPLES: dict[str, Any] = {
    "texts": {
        "summary": "Two texts",
        "value": {"input": ["Munich is in Germany.", "The sky is blue."]},
    },
    "base64": {
        "summary": "Vectors as base64, which is faster to write and to read",
        "value": {"input": "Munich is in Germany.", "encoding_format": "base64"},
    },
    "dimensions": {
        "summary": "Shorter vectors, from models trained for it",
        "value": {"input": ["Munich is in Germany."], "dimensions": 8},
    },
    "truncate": {
        "summary": "Refuse a text that is too long instead of cutting it",
        "value": {"input": ["Munich is in Germany."], "truncate": False},
    },
}


class Embedding(BaseModel):
    """The vector of the input at `index`."""

    object: Literal["embedding"]
    embedding: list[float] | str
    index: int


class Usage(BaseModel):
    """Tokens that were embedded."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    """One vector per input, in order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage
    id: str
    created: int


class ModelStats(BaseModel):
    """The queue of one model."""

    queue_fraction: float
    queue_absolute: int
    results_pending: int
    batch_size: int


class ModelEntry(BaseModel):
    """One served model and what was detected about it."""

    id: str
    stats: ModelStats
    object: Literal["model"]
    owned_by: Literal["infinity"]
    created: int
    backend: str
    capabilities: list[Capability]
    aliases: list[str]
    embedding_dimension: int
    embedding_dtype: str
    max_tokens: int | None
    max_batch_tokens: int
    dtype: str
    dtype_reason: str
    device: str
    attention: str
    attention_reason: str
    pooling: str
    prompts: dict[str, str]
    default_prompt_name: str | None
    revision: str | None
    source: str


class ModelList(BaseModel):
    """Every served model."""

    data: list[ModelEntry]
    object: Literal["list"]


class Health(BaseModel):
    """The server's clock, in seconds."""

    unix: float


class Readiness(BaseModel):
    """Every model answers."""

    ready: Literal[True]


class ErrorInfo(BaseModel):
    """What was wrong, the limit, and the way out."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorResponse(BaseModel):
    """Any answer of 400 and above."""

    error: ErrorInfo


class HTTPErrorResponse(ErrorResponse):
    """The error, with its text as `detail` too."""

    detail: str


class ValidationDetail(BaseModel):
    """One place in the request that does not fit."""

    type: str
    loc: list[str | int]
    msg: str
    input: Any


class ValidationErrorResponse(ErrorResponse):
    """The error, with every place that does not fit."""

    detail: list[ValidationDetail]
