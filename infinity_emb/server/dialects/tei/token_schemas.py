"""Requests and responses of TEI's routes about tokens: `/embed_all`, `/tokenize` and `/decode`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from infinity_emb.server.dialects.tei.schemas import PROMPT_NAME, TeiRequest
from infinity_emb.server.schemas.common import TaskRequest
from infinity_emb.server.schemas.inputs import Inputs, TextsOrIds


class TeiEmbedAllRequest(TeiRequest):
    """Texts of which to embed every token."""

    inputs: TextsOrIds
    prompt_name: str | None = Field(None, description=PROMPT_NAME)


class TeiTokenizeRequest(TaskRequest):
    """Texts to tokenize."""

    input_field: ClassVar[str] = "inputs"

    inputs: Inputs
    add_special_tokens: bool | None = Field(
        None, description="Add the model's special tokens; true by default."
    )
    prompt_name: str | None = Field(None, description=PROMPT_NAME)


def parse_ids(value: Any) -> list[list[int]]:
    """Parse a list of ids, or a list of such lists. Raises PydanticCustomError."""
    if not isinstance(value, list):
        raise PydanticCustomError("list_type", "must be a list of token ids, or a list of such lists")
    if not value:
        raise PydanticCustomError("too_short", "must have at least one token id; the list is empty")
    lists = value if isinstance(value[0], list) else [value]
    for index, ids in enumerate(lists):
        if not isinstance(ids, list) or not all(type(token_id) is int for token_id in ids):
            raise PydanticCustomError("list_type", f"must be lists of token ids; item {index} is not one")
    return lists


_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}}


class TeiDecodeRequest(TaskRequest):
    """Token ids to decode."""

    input_field: ClassVar[str] = "ids"

    ids: Annotated[
        list[list[int]],
        PlainValidator(parse_ids),
        WithJsonSchema(
            {
                "anyOf": [{**_IDS, "minItems": 1}, {"type": "array", "items": _IDS, "minItems": 1}],
                "description": "Ids of the model's vocabulary, or a list of such lists for several texts.",
            }
        ),
    ]
    skip_special_tokens: bool | None = Field(
        None, description="Omit the model's special tokens; true by default."
    )


class TeiToken(BaseModel):
    """One token."""

    id: int = Field(description="Id in the model's vocabulary.")
    text: str = Field(description="Text of the token.")
    special: bool = Field(description="Whether it is a special token.")
    start: int | None = Field(description="Index of the first byte; null for special tokens.")
    stop: int | None = Field(description="End of the byte range.")


TeiTokens = list[list[TeiToken]]
TeiTokenVectors = list[list[list[float]]]

_TEXT = "Munich is in Germany."

TEI_EMBED_ALL_EXAMPLES: dict[str, Any] = {
    "text": {"summary": "One vector per token", "value": {"inputs": _TEXT, "truncate": True}}
}
TEI_TOKENIZE_EXAMPLES: dict[str, Any] = {
    "text": {"summary": "The tokens of a text", "value": {"inputs": _TEXT}},
    "bare": {
        "summary": "Two texts, without special tokens",
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
