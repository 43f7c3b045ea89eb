"""`/embeddings`, `/multi-vector`, and infinity's two routes for images and audio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from infinity_emb.primitives import EmbeddingDtype, EmbeddingEncodingFormat, Modality
from infinity_emb.prompts import MAX_PROMPT_CHARS
from infinity_emb.server.inputs import Inputs, TextsOrIds
from infinity_emb.server.schemas.input_objects import describe_objects, unwrap_objects
from infinity_emb.server.schemas.task import MaxTokens, TaskAnswer, TaskRequest, Truncate, TruncationSide
from infinity_emb.server.vector_bytes import EmbedDtype, Endianness

AskedOutput = Literal["dense", "sparse", "multivector"]
# More tokens than any model reads; beyond it, numbers stop to fit where they are computed with.
MAX_CHUNK_SIZE = 2**31 - 1
_SAME_AS = "The same as `{}`."
# 4 by 4 pixels, and 32 samples: as short as examples can be.
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
    """All inputs are read as one text; or one input in chunks of so many tokens."""

    chunk_size: int | None


def parse_late_chunking(value: Any) -> LateChunking | None:
    """true, false, or an object that may have a `chunk_size`. Raises PydanticCustomError."""
    if value is None or value is False:
        return None
    if value is True:
        return LateChunking(None)
    if not isinstance(value, dict):
        raise PydanticCustomError("late_chunking_type", "must be true, false or an object with `chunk_size`")
    size = value.get("chunk_size")
    if size is not None and not (type(size) is int and 1 <= size <= MAX_CHUNK_SIZE):
        raise PydanticCustomError(
            "chunk_size_type", f"`chunk_size` must be a whole number of tokens in 1..{MAX_CHUNK_SIZE}"
        )
    return LateChunking(size)


def parse_embedding_type(value: Any) -> EmbeddingDtype | Literal["base64"] | None:
    """A number format or `base64`, alone or as a list's only member. Raises PydanticCustomError."""
    if isinstance(value, list) and len(value) > 1:
        raise PydanticCustomError("too_long", "one type an answer; send a request for each type")
    [given] = value if isinstance(value, list) and value else [value]
    if given is None or given == "base64":
        return None if given is None else "base64"
    dtypes = {"float": EmbeddingDtype.float32, **{str(each): each for each in EmbeddingDtype}}
    if not isinstance(given, str) or given not in dtypes:
        names = ", ".join(map(repr, dtypes))
        raise PydanticCustomError("embedding_type", f"must be one of {names} and 'base64'")
    return dtypes[given]


_EMBEDDING_TYPE = {"type": "string", "enum": ["float", *map(str, EmbeddingDtype), "base64"]}
NumberFormat = Annotated[
    EmbeddingDtype, BeforeValidator(lambda value: "float32" if value == "float" else value)
]


class MediaRequest(TaskRequest):
    """The request of infinity's older routes for images and audio."""

    input: Inputs
    encoding_format: EmbeddingEncodingFormat | None = Field(
        None,
        description="`float`: numbers. `base64`: the vector's own bytes, several times faster to read."
        " `bytes`: a body of all vectors' bytes, one after the other, and a header `metadata`, of JSON, which"
        " says where each one is; `Accept: application/octet-stream` asks for it too. `bytes_only`: without"
        " that header.",
    )


class EmbeddingRequest(MediaRequest):
    """OpenAI's embeddings request, and what other vendors and sentence-transformers have beyond it."""

    input: TextsOrIds = Field(json_schema_extra=describe_objects)  # type: ignore[assignment]  # it is wider
    dimensions: int | None = Field(
        None, description="Keep that many values of each vector, scaled back to length 1; 0 keeps all."
    )
    output_dimension: int | None = Field(None, description=_SAME_AS.format("dimensions"))
    modality: Modality | None = Field(None, description="What the inputs are; text where not given.")
    input_type: str | None = Field(
        None,
        description="What a text is: query or document in any vendor's words, or one of the model's own tasks"
        " and prompts. `model:query` and `model-query` as the model's name say the same.",
    )
    task: str | None = Field(None, description=_SAME_AS.format("input_type"))
    prompt_name: str | None = Field(None, description="The model's own prompt that goes before each text.")
    prompt: str | None = Field(
        None,
        max_length=MAX_PROMPT_CHARS,
        description="What goes before each text; an empty one is none.",
    )
    truncate: Truncate = None
    truncation: Truncate = None
    truncation_side: TruncationSide = None
    truncate_prompt_tokens: MaxTokens = None
    outputs: list[AskedOutput] | None = Field(
        None,
        min_length=1,
        max_length=len(get_args(AskedOutput)),
        description="Vectors to answer, all from one pass of the model: `embedding`, `sparse_embedding` and"
        " `multivector_embedding`. Without it, `embedding` is what the model is made for.",
    )
    embedding_dtype: NumberFormat | None = Field(
        None, description="Number format of the vectors; `float` is float32."
    )
    output_dtype: NumberFormat | None = Field(None, description=_SAME_AS.format("embedding_dtype"))
    embedding_type: Annotated[
        EmbeddingDtype | Literal["base64"] | None,
        PlainValidator(parse_embedding_type),
        WithJsonSchema(
            {
                "anyOf": [_EMBEDDING_TYPE, {"type": "array", "items": _EMBEDDING_TYPE}, {"type": "null"}],
                "description": "The same as `embedding_dtype`, also as a list of one; `base64` is the"
                " `encoding_format`.",
            }
        ),
    ] = None
    embed_dtype: EmbedDtype | None = Field(
        None, description="Number format of the bytes, and of base64; lists of numbers are float32."
    )
    endianness: Endianness | None = Field(
        None, description="Order of the bytes of a number, in base64 too; `little` where not given."
    )
    normalized: bool | None = Field(
        None,
        description="true scales float vectors to length 1, which most models' are. Otherwise, and of whole"
        " numbers and bits, they are the model's own.",
    )
    return_multivector: bool | None = Field(
        None, description="Answer one vector a token, as `embeddings`; for late-interaction models."
    )
    chunking: bool | None = Field(
        None, description="Split a text that is too long, and average the vectors of its pieces."
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
                "description": "true: the inputs are read as one text, joined with spaces, and each has a"
                " vector of its own. With `chunk_size` it is one input, and `data` has a vector for each"
                " chunk of so many tokens.",
            }
        ),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _read_objects(cls, members: Any) -> Any:
        return unwrap_objects(members)


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
        "summary": "A query, with the prompt that the model has for it",
        "value": {"input": "Where is Munich?", "input_type": "query"},
    },
    "truncate": {
        "summary": "Refuse a text that is too long instead of cutting it",
        "value": {"input": [_TEXT], "truncate": False},
    },
    "chunking": {
        "summary": "Embed a text that is too long in pieces",
        "value": {"input": [_TEXT], "chunking": True},
    },
    "late_chunking": {
        "summary": "Vectors of passages that know their context",
        "value": {"input": [_TEXT, "It has 1.5 million inhabitants."], "late_chunking": True},
    },
    "binary": {
        "summary": "One bit for each value",
        "value": {"input": [_TEXT], "embedding_dtype": "ubinary", "encoding_format": "base64"},
    },
    "outputs": {
        "summary": "Several kinds of vectors at once, from models such as BGE-M3",
        "value": {"input": [_TEXT], "outputs": ["dense", "sparse", "multivector"]},
    },
    "image": {"summary": "An image", "value": {"input": [_IMAGE], "modality": "image"}},
    "bytes": {
        "summary": "Vectors as bytes of bfloat16, with a header that says where each one is",
        "value": {"input": [_TEXT], "encoding_format": "bytes", "embed_dtype": "bfloat16"},
    },
    "objects": {"summary": "As clients of Jina name an image", "value": {"input": [{"image": _IMAGE}]}},
}
MULTIVECTOR_EXAMPLES: dict[str, Any] = {
    "query": {
        "summary": "A query, one vector a token",
        "value": {"input": ["Where is Munich?"], "input_type": "query"},
    }
}
IMAGE_EXAMPLES: dict[str, Any] = {"image": {"summary": "An image", "value": {"input": [_IMAGE]}}}
AUDIO_EXAMPLES: dict[str, Any] = {"audio": {"summary": "A sound", "value": {"input": [_AUDIO]}}}


class SparseEmbedding(BaseModel):
    """The entries of a vector that are not 0."""

    indices: list[int] = Field(description="Ascending.")
    values: list[float]


class CharRange(BaseModel):
    """Where a passage stands in the text that was read."""

    char_range: tuple[int, int] = Field(description="First character, and the one behind the last.")


Values = list[float] | list[list[float]] | str


class Embedding(BaseModel):
    """The vectors of the input, or of the chunk, at `index`."""

    object: Literal["embedding"]
    embedding: Values | None = Field(
        None, description="A late-interaction model has a vector for each token here."
    )
    sparse_embedding: SparseEmbedding | None = None
    multivector_embedding: Values | None = None
    embeddings: Values | None = Field(None, description="One vector a token, for `return_multivector`.")
    index: int
    shape: tuple[int, int] | None = Field(
        None, description="With base64: rows and columns of a matrix, whose rows follow one another."
    )
    late_chunking: CharRange | None = None


class EmbeddingResponse(TaskAnswer):
    """The vectors of each input, in order."""

    object: Literal["list"]
    data: list[Embedding]
