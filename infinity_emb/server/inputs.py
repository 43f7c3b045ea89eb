"""The members that hold what is to be computed; each form of them becomes a list, all else a helpful word.

One validator each instead of a union, whose errors would list every form that did not match.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from infinity_emb.backends.base import Ids
from infinity_emb.primitives import TokenIdsOf
from infinity_emb.server.validation import body_error

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
_STRING: dict[str, Any] = {"type": "string"}


def parse_inputs(value: Any) -> list[str]:
    """One text or a list of texts → a list of one or more. Raises PydanticCustomError."""
    if isinstance(value, str):
        return [value]
    texts: list[str] = _parse_members(value, _read_text, "texts", may_be_alone=True)
    return texts


def parse_texts_or_ids(value: Any) -> list[str | Ids]:
    """A text, token ids, or a list of texts and ids → a list of one or more. Raises PydanticCustomError."""
    if isinstance(value, str):
        return [value]
    if (ids := _read_ids(value)) is not None:
        return [ids]
    inputs: list[str | Ids] = _parse_members(value, _read_text_or_ids, "texts", may_be_alone=True)
    return inputs


def check_ids_allowed(inputs: Sequence[str | Ids], ids_of: TokenIdsOf, *, name: str) -> None:
    """Raises a 422 for token ids where nobody's are taken. name: of the member that holds the inputs."""
    if ids_of is TokenIdsOf.refuse and any(isinstance(each, Ids) for each in inputs):
        raise body_error("string_type", TOKEN_IDS_MESSAGE, loc=[name])


def parse_documents(value: Any) -> list[str]:
    """Texts, or objects with a `text` → a list of one or more texts. Raises PydanticCustomError."""
    texts: list[str] = _parse_members(value, _read_document, "texts, or of objects with a `text`")
    return texts


def parse_texts_or_pairs(value: Any) -> list[str | tuple[str, str]]:
    """One text, or a list of texts and pairs → a list of one or more. Raises PydanticCustomError."""
    if isinstance(value, str):
        return [value]
    inputs: list[str | tuple[str, str]] = _parse_members(
        value, _read_text_or_pair, "texts, or of pairs [text, text]", may_be_alone=True
    )
    return inputs


def _parse_members(value: Any, read: Callable[[Any], Any], what: str, *, may_be_alone: bool = False) -> Any:
    """Each member as `read` has it; one that it answers None for is named."""
    if not isinstance(value, list):
        forms = f"a text or a list of {what}" if may_be_alone else f"a list of {what}"
        raise PydanticCustomError("string_type", f"must be {forms}, not {_name(value)}")
    if not value:
        raise PydanticCustomError("too_short", "must have at least one text; the list is empty")
    if set(map(type, value)) == {str}:
        return value
    members = []
    for position, given in enumerate(value):
        member = read(given)
        if member is None:
            raise _explain(position, given, what)
        members.append(member)
    return members


def _read_text(given: Any) -> Any:
    return given if isinstance(given, str) else None


def _read_ids(given: Any) -> Ids | None:
    is_ids = isinstance(given, list) and set(map(type, given)) == {int}
    return Ids(tuple(given)) if is_ids else None


def _read_text_or_ids(given: Any) -> Any:
    return given if isinstance(given, str) else _read_ids(given)


def _read_document(given: Any) -> Any:
    return _read_text(given.get("text") if isinstance(given, dict) else given)


def _read_text_or_pair(given: Any) -> Any:
    if isinstance(given, list) and len(given) == 2 and set(map(type, given)) == {str}:
        return tuple(given)
    return _read_text(given)


def _explain(position: int, wrong: Any, what: str) -> PydanticCustomError:
    if _is_token_id(wrong) or (isinstance(wrong, list) and wrong and _is_token_id(wrong[0])):
        return PydanticCustomError("string_type", TOKEN_IDS_MESSAGE)
    return PydanticCustomError(
        "string_type", f"must be a list of {what}; member {position} is {_name(wrong)}"
    )


def _is_token_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _name(value: Any) -> str:
    return _TYPE_NAMES[type(value)]


def _list_of(*members: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": {"anyOf": list(members)}, "minItems": 1}


_DOCUMENT = {"type": "object", "properties": {"text": _STRING}, "required": ["text"]}
_PAIR = {"type": "array", "items": _STRING, "minItems": 2, "maxItems": 2}

Inputs = Annotated[
    list[str],
    PlainValidator(parse_inputs),
    WithJsonSchema(
        {
            "anyOf": [_STRING, _list_of(_STRING)],
            "description": "One text, or a list of texts; of images and audio their URLs or data URIs. A text"
            " may be empty.",
        }
    ),
]
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
TextsOrIds = Annotated[
    list[str | Ids],
    PlainValidator(parse_texts_or_ids),
    WithJsonSchema(
        {
            "anyOf": [_STRING, _list_of(_STRING, _IDS), _IDS],
            "description": "One text, or a list of texts; of images and audio their URLs or data URIs. A text"
            " may be empty. Where the server takes token ids, a list of them stands for a text.",
        }
    ),
]
Documents = Annotated[
    list[str],
    PlainValidator(parse_documents),
    WithJsonSchema({**_list_of(_STRING, _DOCUMENT), "description": "Texts, or objects with a `text`."}),
]
TextsOrPairs = Annotated[
    list[str | tuple[str, str]],
    PlainValidator(parse_texts_or_pairs),
    WithJsonSchema(
        {
            "anyOf": [_STRING, _list_of(_STRING, _PAIR)],
            "description": "One text, or a list of texts and of pairs of texts that are read together.",
        }
    ),
]
