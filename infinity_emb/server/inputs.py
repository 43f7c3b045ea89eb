"""The `input` field: one text or a list of them becomes a list; everything else gets a helpful word.

One validator instead of a union, whose errors would list every form that did not match.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

TOKEN_IDS_MESSAGE = (
    "token ids are not accepted, they would be those of another model's tokenizer; send the texts themselves"
    " (LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)"
)
_TYPE_NAMES = {
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def parse_inputs(value: Any) -> list[str]:
    """A list of one or more texts, unchanged. Raises PydanticCustomError."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise PydanticCustomError("string_type", f"must be a text or a list of texts, not {_name(value)}")
    if not value:
        raise PydanticCustomError("too_short", "must have at least one text; the list is empty")
    if set(map(type, value)) != {str}:
        raise _explain(value)
    return value


def _explain(members: list[Any]) -> PydanticCustomError:
    position, wrong = next((at, each) for at, each in enumerate(members) if type(each) is not str)
    if _is_token_id(wrong) or (isinstance(wrong, list) and wrong and _is_token_id(wrong[0])):
        return PydanticCustomError("string_type", TOKEN_IDS_MESSAGE)
    return PydanticCustomError("string_type", f"must be a list of texts; member {position} is {_name(wrong)}")


def _is_token_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _name(value: Any) -> str:
    return _TYPE_NAMES[type(value)]


Inputs = Annotated[
    list[str],
    PlainValidator(parse_inputs),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ],
            "description": "One text, or a list of texts. A text may be empty.",
        }
    ),
]
