"""Requests and responses of Ollama's routes."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from infinity_emb.server.schemas.common import JsonBody, OptionalInt, TaskRequest, Truncate
from infinity_emb.server.schemas.inputs import parse_inputs
from infinity_emb.types import MAX_MODEL_NAME_CHARS


def parse_optional_inputs(value: Any) -> list[str]:
    """Parse like `parse_inputs`; null, an empty list and an empty text mean no text.

    Raises PydanticCustomError.
    """
    return [] if value in (None, "", []) else parse_inputs(value)


OptionalInputs = Annotated[
    list[str],
    PlainValidator(parse_optional_inputs),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]}
    ),
]


class OllamaOptions(BaseModel):
    """Options of the runner; all others are ignored."""

    num_ctx: OptionalInt = Field(None, ge=1, description="Maximum number of tokens per text.")


class OllamaTextRequest(TaskRequest):
    """Fields of both routes that embed; `keep_alive` is ignored."""

    options: OllamaOptions | None = Field(None, description="Options of the runner.")

    @property
    def max_tokens(self) -> int | None:
        """The requested limit per text, or None."""
        return self.options.num_ctx if self.options else None


class OllamaEmbedRequest(OllamaTextRequest):
    """Texts to embed."""

    input: OptionalInputs = Field(
        [],
        validation_alias=AliasChoices("input", "prompt"),
        description="A text or a list of texts; may be empty. Alias: `prompt`.",
    )
    truncate: Truncate = None
    dimensions: OptionalInt = Field(
        None, description="Truncate vectors to this many dimensions and normalize them; 0 keeps all."
    )


class OllamaPromptRequest(OllamaTextRequest):
    """A text to embed."""

    input_field: ClassVar[str] = "prompt"

    prompt: str | None = Field(
        None,
        validation_alias=AliasChoices("prompt", "input"),
        description="The text; without one the response is an empty vector. Alias: `input`.",
    )


class OllamaShowRequest(TaskRequest):
    """A model to describe or to pull."""

    input_field: ClassVar[str] = "model"
    needs_capacity: ClassVar[bool] = False

    model: str | None = Field(
        None,
        max_length=MAX_MODEL_NAME_CHARS,
        validation_alias=AliasChoices("model", "name"),
        description="Served name or alias. Alias of the field: `name`.",
    )


class OllamaGenerateRequest(JsonBody):
    """A request to generate text, which no model of this server does; other fields are ignored."""

    model_config = ConfigDict(extra="allow")

    model: str | None = Field(
        None, max_length=MAX_MODEL_NAME_CHARS, validation_alias=AliasChoices("model", "name")
    )


_TEXT = "Munich is in Germany."

OLLAMA_EMBED_EXAMPLES: dict[str, Any] = {
    "texts": {"summary": "Two texts", "value": {"input": [_TEXT, "The sky is blue."]}},
    "dimensions": {"summary": "A shorter vector", "value": {"input": _TEXT, "dimensions": 8}},
}
OLLAMA_PROMPT_EXAMPLES: dict[str, Any] = {"text": {"summary": "One text", "value": {"prompt": _TEXT}}}
OLLAMA_SHOW_EXAMPLES: dict[str, Any] = {"only": {"summary": "The only model", "value": {}}}


class OllamaEmbedResponse(BaseModel):
    """The vectors of all texts, in order, all of length 1."""

    model: str = Field(description="Name of the model in the request.")
    embeddings: list[list[float]] = Field(description="One vector per text.")
    total_duration: int = Field(description="Nanoseconds.")
    load_duration: int = Field(description="Nanoseconds; always 0, because models are loaded already.")
    prompt_eval_count: int = Field(description="Number of tokens processed.")


class OllamaPromptResponse(BaseModel):
    """The vector of the text, of length 1."""

    embedding: list[float] = Field(description="The vector; empty if there is no text.")


class OllamaDetails(BaseModel):
    """Details of a model."""

    format: str = Field(description="Inference engine.")
    family: str = Field(description="Kind of model.")
    families: list[str] = Field(description="The same as a list.")
    parameter_size: str = Field(description="Always empty: unknown.")
    quantization_level: str = Field(description="Data type of the weights.")


class OllamaModel(BaseModel):
    """One name of a served model."""

    name: str = Field(description="Served name or alias, with a tag.")
    model: str = Field(description="The same name.")
    modified_at: str = Field(description="Time at which the server started.")
    size: int = Field(description="Always 0: unknown.")
    digest: str = Field(description="Commit of the repository; empty for a local model.")
    details: OllamaDetails


class OllamaTags(BaseModel):
    """All names of all served models."""

    models: list[OllamaModel] = Field(description="The models.")


class OllamaRunningModel(OllamaModel):
    """One name of a model in memory."""

    expires_at: str = Field(description="Far in the future: models stay in memory.")
    size_vram: int = Field(description="Always 0: unknown.")


class OllamaRunning(BaseModel):
    """The models in memory."""

    models: list[OllamaRunningModel] = Field(description="The models.")


class OllamaStatus(BaseModel):
    """The result of a pull."""

    status: Literal["success"] = Field(description="The model is served.")


class OllamaShow(BaseModel):
    """The description of one served model."""

    modified_at: str = Field(description="Time at which the server started.")
    details: OllamaDetails
    model_info: dict[str, str | int] = Field(description="Kind, dimensions and maximum number of tokens.")
    capabilities: list[Literal["embedding"]] = Field(description="Empty if the model does not embed.")


class OllamaVersion(BaseModel):
    """The version of this server."""

    version: str = Field(description="The version.")
