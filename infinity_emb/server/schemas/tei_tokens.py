"""The routes of Text Embeddings Inference about tokens: a model's tokenizer, and a vector for each token."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from infinity_emb.server.error_shape import ErrorShape
from infinity_emb.server.inputs import Inputs, TextsOrIds
from infinity_emb.server.schemas.task import TaskRequest
from infinity_emb.server.schemas.tei import PROMPT_NAME, TeiRequest, shape_error


class TeiEmbedAllRequest(TeiRequest):
    """Texts whose tokens are embedded."""

    inputs: TextsOrIds
    prompt_name: str | None = Field(None, description=PROMPT_NAME)


class TeiTokenizeRequest(TaskRequest):
    """Texts to be taken apart."""

    input_member: ClassVar[str] = "inputs"
    error_shape: ClassVar[ErrorShape | None] = shape_error

    inputs: Inputs
    add_special_tokens: bool | None = Field(None, description="false: without the model's start and end.")
    prompt_name: str | None = Field(None, description=PROMPT_NAME)


def parse_ids(value: Any) -> list[list[int]]:
    """One list of ids, or several → a list of one or more. Raises PydanticCustomError."""
    if not isinstance(value, list):
        raise PydanticCustomError("list_type", "must be a list of token ids, or a list of such lists")
    if not value:
        raise PydanticCustomError("too_short", "must have at least one token id; the list is empty")
    lists = value if isinstance(value[0], list) else [value]
    for position, each in enumerate(lists):
        if not isinstance(each, list) or not all(type(member) is int for member in each):
            raise PydanticCustomError("list_type", f"must be lists of token ids; list {position} is not one")
    return lists


_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}}


class TeiDecodeRequest(TaskRequest):
    """Token ids to be put together."""

    input_member: ClassVar[str] = "ids"
    error_shape: ClassVar[ErrorShape | None] = shape_error

    ids: Annotated[
        list[list[int]],
        PlainValidator(parse_ids),
        WithJsonSchema(
            {
                "anyOf": [{**_IDS, "minItems": 1}, {"type": "array", "items": _IDS, "minItems": 1}],
                "description": "Ids of the model's vocabulary; of several texts a list of such lists.",
            }
        ),
    ]
    skip_special_tokens: bool | None = Field(
        None, description="Leave the model's special tokens out; true where not given."
    )


class TeiToken(BaseModel):
    """A token of a text."""

    id: int
    text: str
    special: bool
    start: int | None = Field(description="First byte in the prompt and the text; null for a special token.")
    stop: int | None = Field(description="The byte behind the last.")


TeiTokens = list[list[TeiToken]]
TeiTokenVectors = list[list[list[float]]]

_TEXT = "Munich is in Germany."

TEI_EMBED_ALL_EXAMPLES: dict[str, Any] = {
    "text": {"summary": "A vector for each token", "value": {"inputs": _TEXT, "truncate": True}}
}
TEI_TOKENIZE_EXAMPLES: dict[str, Any] = {
    "text": {"summary": "The tokens of a text", "value": {"inputs": _TEXT}},
    "bare": {
        "summary": "Of two texts, without special tokens",
        "value": {"inputs": [_TEXT, "The sky is blue."], "add_special_tokens": False},
    },
}
TEI_DECODE_EXAMPLES: dict[str, Any] = {
    "ids": {"summary": "The text of some ids", "value": {"ids": [97, 98, 99]}},
    "lists": {
        "summary": "Two texts with their special tokens",
        "value": {"ids": [[97, 98], [99]], "skip_special_tokens": False},
    },
}
