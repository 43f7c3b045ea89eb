"""Ollama's `/api/embed`, `/api/embeddings`, `/api/show`, `/api/tags` and `/api/version`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema

from infinity_emb.errors import UnknownModel
from infinity_emb.server.error_shape import ErrorShape, Failure, ShapedError
from infinity_emb.server.inputs import parse_inputs
from infinity_emb.server.schemas.task import TaskRequest, Truncate


def shape_error(failure: Failure) -> ShapedError:
    """Ollama's clients show `error`, and take 404 for a model that is not there and 400 for what is wrong."""
    status = 404 if isinstance(failure.error, UnknownModel) else failure.status
    return ShapedError(400 if status == 422 else status, {"error": failure.message})


def parse_maybe_nothing(value: Any) -> list[str]:
    """As `parse_inputs`; an empty list, an empty text and null are no text. Raises PydanticCustomError."""
    return [] if value in (None, "", []) else parse_inputs(value)


MaybeNothing = Annotated[
    list[str],
    PlainValidator(parse_maybe_nothing),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
                {"type": "null"},
            ]
        }
    ),
]


class OllamaEmbedRequest(TaskRequest):
    """Texts; `options` and `keep_alive` are ignored."""

    error_shape: ClassVar[ErrorShape | None] = shape_error

    input: MaybeNothing = Field([], description="One text, or a list of texts; none are answered by none.")
    truncate: Truncate = None
    dimensions: int | None = Field(
        None, description="Keep that many values of each vector, scaled back to length 1; 0 keeps all."
    )


class OllamaPromptRequest(TaskRequest):
    """One text; `options` and `keep_alive` are ignored."""

    input_member: ClassVar[str] = "prompt"
    error_shape: ClassVar[ErrorShape | None] = shape_error

    prompt: str | None = Field(None, description="The text; none is answered by an empty vector.")


class OllamaShowRequest(TaskRequest):
    """A model's name."""

    input_member: ClassVar[str] = "model"
    error_shape: ClassVar[ErrorShape | None] = shape_error
    needs_room: ClassVar[bool] = False


_TEXT = "Munich is in Germany."

OLLAMA_EMBED_EXAMPLES: dict[str, Any] = {
    "texts": {"summary": "Two texts", "value": {"input": [_TEXT, "The sky is blue."]}},
    "dimensions": {"summary": "A shorter vector", "value": {"input": _TEXT, "dimensions": 8}},
}
OLLAMA_PROMPT_EXAMPLES: dict[str, Any] = {"text": {"summary": "One text", "value": {"prompt": _TEXT}}}
OLLAMA_SHOW_EXAMPLES: dict[str, Any] = {"only": {"summary": "The only model", "value": {}}}


class OllamaEmbedResponse(BaseModel):
    """The vectors of each text, in order, all of length 1."""

    model: str
    embeddings: list[list[float]]
    total_duration: int = Field(description="Nanoseconds.")
    load_duration: int = Field(description="Nanoseconds; 0, as models are loaded when the server starts.")
    prompt_eval_count: int = Field(description="Tokens that were read.")


class OllamaPromptResponse(BaseModel):
    """The vector of the text, of length 1."""

    embedding: list[float]


class OllamaDetails(BaseModel):
    """What the model was made of."""

    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaModel(BaseModel):
    """One served model."""

    name: str
    model: str
    modified_at: str = Field(description="When the server started.")
    size: int = Field(description="0: not known.")
    digest: str
    details: OllamaDetails


class OllamaTags(BaseModel):
    """Every served model."""

    models: list[OllamaModel]


class OllamaShow(BaseModel):
    """What is known of one served model."""

    modified_at: str = Field(description="When the server started.")
    details: OllamaDetails
    model_info: dict[str, str | int]
    capabilities: list[Literal["embedding"]]


class OllamaVersion(BaseModel):
    """This server's own version."""

    version: str


class OllamaError(BaseModel):
    """Any answer of 400 and above."""

    error: str
