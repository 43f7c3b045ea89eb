"""`/embeddings`, `/multi-vector`, and infinity's two routes for images and audio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from infinity_emb.preprocessing.prompts import MAX_PROMPT_CHARS
from infinity_emb.server.schemas.common import (
    MaxTokens,
    OptionalInt,
    TaskRequest,
    TaskResponse,
    Truncate,
    TruncationSide,
)
from infinity_emb.server.schemas.input_objects import describe_objects, unwrap_objects
from infinity_emb.server.schemas.inputs import Inputs, TextsOrIds
from infinity_emb.types import EmbeddingDtype, EmbeddingEncodingFormat, Modality

EmbedDtype = Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]
Endianness = Literal["native", "big", "little"]
RequestedOutput = Literal["dense", "sparse", "multivector"]
# More tokens than any model reads, and the largest number that tokenizers accept.
MAX_CHUNK_SIZE = 2**31 - 1
_ALIAS = "Alias of `{}`."
# 4 by 4 pixels, and 32 samples.
_IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAAFElEQVR4nGOsCNBggAEmBiSAmwMAMD"
    "QA+HS6plIAAAAASUVORK5CYII="
)
_AUDIO = (
    "data:audio/wav;base64,UklGRkQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YSAAAACAgICAgICAgICAgICAgICA"
    "gICAgICAgICAgICAgICAgA=="
)


@dataclass(frozen=True, slots=True)
class LateChunking:
    """Encode all inputs as one text, or one input in chunks of `chunk_size` tokens."""

    chunk_size: int | None


def parse_late_chunking(value: Any) -> LateChunking | None:
    """Parse true, false, or an object that may have a `chunk_size`. Raises PydanticCustomError."""
    if value is None or value is False:
        return None
    if value is True:
        return LateChunking(None)
    if not isinstance(value, dict):
        raise PydanticCustomError("late_chunking_type", "must be true, false or an object with `chunk_size`")
    size = value.get("chunk_size")
    if size is not None and not (type(size) is int and 1 <= size <= MAX_CHUNK_SIZE):
        raise PydanticCustomError(
            "chunk_size_type", f"`chunk_size` must be an integer from 1 to {MAX_CHUNK_SIZE}"
        )
    return LateChunking(size)


def parse_embedding_type(value: Any) -> EmbeddingDtype | Literal["base64"] | None:
    """Parse a dtype or `base64`, alone or as the only item of a list. Raises PydanticCustomError."""
    if isinstance(value, list) and len(value) > 1:
        raise PydanticCustomError(
            "too_long", "only one type per request is supported; send a request for each"
        )
    [given] = value if isinstance(value, list) and value else [value]
    if given is None or given == "base64":
        return None if given is None else "base64"
    dtypes = {"float": EmbeddingDtype.float32, **{str(dtype): dtype for dtype in EmbeddingDtype}}
    if not isinstance(given, str) or given not in dtypes:
        names = ", ".join(map(repr, dtypes))
        raise PydanticCustomError("embedding_type", f"must be one of {names} and 'base64'")
    return dtypes[given]


_EMBEDDING_TYPE = {"type": "string", "enum": ["float", *map(str, EmbeddingDtype), "base64"]}
Dtype = Annotated[EmbeddingDtype, BeforeValidator(lambda value: "float32" if value == "float" else value)]


class MediaRequest(TaskRequest):
    """A request of the deprecated routes for images and audio."""

    input: Inputs
    encoding_format: EmbeddingEncodingFormat | None = Field(
        None,
        description="`float`: JSON numbers. `base64`: the bytes of each vector, several times faster to"
        " decode. `bytes`: a binary body with the bytes of all vectors and a JSON header `metadata` with the"
        " byte range of each; also selected by `Accept: application/octet-stream`. `bytes_only`: the same"
        " without the header.",
    )


class EmbeddingRequest(MediaRequest):
    """OpenAI's embeddings request with the options of other vendors and of sentence-transformers."""

    input: TextsOrIds = Field(json_schema_extra=describe_objects)  # type: ignore[assignment]  # it is wider
    dimensions: OptionalInt = Field(
        None,
        description="Truncate vectors to this many dimensions and normalize them. With `modality`, as"
        " infinity_client sends it, 0 keeps all.",
    )
    output_dimension: OptionalInt = Field(None, description=_ALIAS.format("dimensions"))
    modality: Modality | None = Field(None, description="Modality of the inputs; text by default.")
    input_type: str | None = Field(
        None,
        description="Kind of the inputs: query or document in any vendor's terms, or one of the model's tasks"
        " or prompts. Model names like `model:query` and `model-query` set it, too.",
    )
    task: str | None = Field(None, description=_ALIAS.format("input_type"))
    prompt_name: str | None = Field(
        None, description="Name of one of the model's prompts, which is prepended to each input."
    )
    prompt: str | None = Field(
        None,
        max_length=MAX_PROMPT_CHARS,
        description="Text to prepend to each input; an empty string means no prompt.",
    )
    truncate: Truncate = None
    truncation: Truncate = Field(None, description=_ALIAS.format("truncate"))
    truncation_side: TruncationSide = None
    truncate_prompt_tokens: MaxTokens = None
    outputs: list[RequestedOutput] | None = Field(
        None,
        min_length=1,
        max_length=len(get_args(RequestedOutput)),
        description="Vectors to return, all from one forward pass, as `embedding`, `sparse_embedding` and"
        " `multivector_embedding`. By default `embedding` holds the model's main output.",
    )
    embedding_dtype: Dtype | None = Field(None, description="Data type of the vectors; `float` is float32.")
    output_dtype: Dtype | None = Field(None, description=_ALIAS.format("embedding_dtype"))
    embedding_type: Annotated[
        EmbeddingDtype | Literal["base64"] | None,
        PlainValidator(parse_embedding_type),
        WithJsonSchema(
            {
                "anyOf": [_EMBEDDING_TYPE, {"type": "array", "items": _EMBEDDING_TYPE}, {"type": "null"}],
                "description": "Alias of `embedding_dtype`, also as a list with one item; `base64` sets"
                " `encoding_format`.",
            }
        ),
    ] = None
    embed_dtype: EmbedDtype | None = Field(
        None, description="Data type of binary and base64 vectors; JSON numbers are always float32."
    )
    endianness: Endianness | None = Field(
        None, description="Byte order of binary and base64 vectors; `little` by default."
    )
    normalized: bool | None = Field(
        None,
        description="true normalizes vectors to length 1, false returns them as the model computes them,"
        " which is refused where the model's own files normalize them. `--normalize` sets the default.",
    )
    normalize: bool | None = Field(None, description=_ALIAS.format("normalized"))
    use_activation: bool | None = Field(
        None,
        validation_alias=AliasChoices("use_activation", "activation"),
        description=_ALIAS.format("normalized"),
    )
    return_multivector: bool | None = Field(
        None, description="Return one vector per token as `embeddings`; for late-interaction models."
    )
    chunking: bool | None = Field(
        None, description="Split a text that is too long and average the vectors of its chunks."
    )
    late_chunking: Annotated[
        LateChunking | None,
        PlainValidator(parse_late_chunking),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "boolean"},
                    {"type": "object", "properties": {"chunk_size": {"type": "integer", "minimum": 1}}},
                    {"type": "null"},
                ],
                "description": "true: encode all inputs as one text, joined by spaces, and return one vector"
                " per input. With `chunk_size`: encode one input and return one vector per chunk of that many"
                " tokens.",
            }
        ),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _unwrap_objects(cls, body: Any) -> Any:
        return unwrap_objects(body)


_TEXT = "Munich is in Germany."

EMBEDDING_EXAMPLES: dict[str, Any] = {
    "texts": {"summary": "Two texts", "value": {"input": [_TEXT, "The sky is blue."]}},
    "base64": {
        "summary": "Vectors as base64, which is faster to write and to read",
        "value": {"input": _TEXT, "encoding_format": "base64"},
    },
    "dimensions": {
        "summary": "Shorter vectors, from models trained for it",
        "value": {"input": [_TEXT], "dimensions": 8},
    },
    "query": {
        "summary": "A query, with the model's query prompt",
        "value": {"input": "Where is Munich?", "input_type": "query"},
    },
    "truncate": {
        "summary": "Reject a text that is too long instead of truncating it",
        "value": {"input": [_TEXT], "truncate": False},
    },
    "chunking": {
        "summary": "Embed a text that is too long in chunks",
        "value": {"input": [_TEXT], "chunking": True},
    },
    "late_chunking": {
        "summary": "Vectors of passages in the context of each other",
        "value": {"input": [_TEXT, "It has 1.5 million inhabitants."], "late_chunking": True},
    },
    "binary": {
        "summary": "One bit per dimension",
        "value": {"input": [_TEXT], "embedding_dtype": "ubinary", "encoding_format": "base64"},
    },
    "outputs": {
        "summary": "Several kinds of vectors at once, from models such as BGE-M3",
        "value": {"input": [_TEXT], "outputs": ["dense", "sparse", "multivector"]},
    },
    "image": {"summary": "An image", "value": {"input": [_IMAGE], "modality": "image"}},
    "bytes": {
        "summary": "Binary response in bfloat16, with a header that describes it",
        "value": {"input": [_TEXT], "encoding_format": "bytes", "embed_dtype": "bfloat16"},
    },
    "objects": {"summary": "An image in Jina's format", "value": {"input": [{"image": _IMAGE}]}},
}
MULTIVECTOR_EXAMPLES: dict[str, Any] = {
    "query": {
        "summary": "A query, one vector per token",
        "value": {"input": ["Where is Munich?"], "input_type": "query"},
    }
}
IMAGE_EXAMPLES: dict[str, Any] = {"image": {"summary": "An image", "value": {"input": [_IMAGE]}}}
AUDIO_EXAMPLES: dict[str, Any] = {"audio": {"summary": "A clip", "value": {"input": [_AUDIO]}}}


class SparseEmbedding(BaseModel):
    """The non-zero values of a vector."""

    indices: list[int] = Field(description="Indices in the vocabulary, ascending.")
    values: list[float] = Field(description="Values at these indices.")


class CharRange(BaseModel):
    """The position of a passage in the joined text."""

    char_range: tuple[int, int] = Field(description="Index of the first character, and end of the range.")


Values = list[float] | list[list[float]] | str


class Embedding(BaseModel):
    """The vectors of one input or chunk."""

    object: Literal["embedding"]
    embedding: Values | None = Field(
        None, description="A vector; late-interaction models return one per token."
    )
    sparse_embedding: SparseEmbedding | None = None
    multivector_embedding: Values | None = Field(None, description="One vector per token.")
    embeddings: Values | None = Field(None, description="One vector per token, with `return_multivector`.")
    index: int = Field(description="Index of the input, or of the chunk.")
    shape: tuple[int, int] | None = Field(None, description="Shape of a matrix in base64, stored row by row.")
    late_chunking: CharRange | None = None


class EmbeddingResponse(TaskResponse):
    """The vectors of each input, in order."""

    object: Literal["list"]
    data: list[Embedding]
