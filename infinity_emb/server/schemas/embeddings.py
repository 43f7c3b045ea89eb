"""`/embeddings`, and infinity's two routes for images and audio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from infinity_emb.primitives import EmbeddingDtype, EmbeddingEncodingFormat, Modality
from infinity_emb.prompts import MAX_PROMPT_CHARS
from infinity_emb.server.inputs import Inputs
from infinity_emb.server.schemas.task import TaskAnswer, TaskRequest, Truncate, TruncationSide

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


NumberFormat = Annotated[
    EmbeddingDtype, BeforeValidator(lambda value: "float32" if value == "float" else value)
]


class MediaRequest(TaskRequest):
    """The request of infinity's older routes for images and audio."""

    input: Inputs
    encoding_format: EmbeddingEncodingFormat | None = Field(
        None,
        description="`float`: numbers. `base64`: the vector's own bytes, little-endian, several times faster"
        " to read.",
    )


class EmbeddingRequest(MediaRequest):
    """OpenAI's embeddings request, and what other vendors and sentence-transformers have beyond it."""

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
    truncation_side: TruncationSide = None
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
    embedding_type: NumberFormat | None = Field(None, description=_SAME_AS.format("embedding_dtype"))
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
    index: int
    shape: tuple[int, int] | None = Field(
        None, description="With base64: rows and columns of a matrix, whose rows follow one another."
    )
    late_chunking: CharRange | None = None


class EmbeddingResponse(TaskAnswer):
    """The vectors of each input, in order."""

    object: Literal["list"]
    data: list[Embedding]
