"""Field types of inputs: each accepted form becomes a list, and anything else a helpful error.

One validator per type instead of a union, whose errors would list every form that did not match.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from infinity_emb.items import TokenIdsInput

TOKEN_IDS_MESSAGE = (
    "token ids are not accepted because they may come from another model's tokenizer; send texts"
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
    """Parse a text or a list of texts. Raises PydanticCustomError."""
    if isinstance(value, str):
        return [value]
    texts: list[str] = _parse_items(value, _read_text, "texts", allow_single=True)
    return texts


def parse_texts_or_ids(value: Any) -> list[str | TokenIdsInput]:
    """Parse a text, token ids, or a list of texts and token ids. Raises PydanticCustomError."""
    if isinstance(value, str):
        return [value]
    if (ids := _read_ids(value)) is not None:
        return [ids]
    inputs: list[str | TokenIdsInput] = _parse_items(value, _read_text_or_ids, "texts", allow_single=True)
    return inputs


def parse_documents(value: Any) -> list[str]:
    """Parse a list of texts, or of objects with a `text` or with vLLM's `content`.

    Raises PydanticCustomError.
    """
    texts: list[str] = _parse_items(
        list_documents(value), _read_document, "texts, or of objects with a `text`"
    )
    return texts


def parse_documents_or_ids(value: Any) -> list[str | TokenIdsInput]:
    """Parse a document, token ids, or a list of documents and token ids. Raises PydanticCustomError."""
    values = list_documents(value)
    if isinstance(values, (str, dict)) or _read_ids(values) is not None:
        values = [values]
    inputs: list[str | TokenIdsInput] = _parse_items(
        values, _read_document_or_ids, "texts, or of objects with a `text`"
    )
    return inputs


def list_documents(value: Any) -> Any:
    """Return the documents of vLLM's `{"content": [part, ...]}`, in which each part is one; else `value`."""
    is_content = isinstance(value, dict) and isinstance(value.get("content"), list)
    return value["content"] if is_content else value


def parse_texts_pairs_or_ids(value: Any) -> list[str | tuple[str, str] | TokenIdsInput]:
    """Parse a text, token ids, or a list of texts, pairs and token ids. Raises PydanticCustomError."""
    if isinstance(value, str):
        return [value]
    if (ids := _read_ids(value)) is not None:
        return [ids]
    inputs: list[str | tuple[str, str] | TokenIdsInput] = _parse_items(
        value, _read_any, "texts, or of pairs [text, text]", allow_single=True
    )
    return inputs


def parse_texts_or_pairs(value: Any) -> list[str | tuple[str, str]]:
    """Parse a text, or a list of texts and pairs. Raises PydanticCustomError."""
    if isinstance(value, str):
        return [value]
    inputs: list[str | tuple[str, str]] = _parse_items(
        value, _read_text_or_pair, "texts, or of pairs [text, text]", allow_single=True
    )
    return inputs


def _parse_items(value: Any, read: Callable[[Any], Any], what: str, *, allow_single: bool = False) -> Any:
    """Parse each item with `read`; an error names the first for which it returns None."""
    if not isinstance(value, list):
        forms = f"a text or a list of {what}" if allow_single else f"a list of {what}"
        raise PydanticCustomError("string_type", f"must be {forms}, not {_describe_type(value)}")
    if not value:
        raise PydanticCustomError("too_short", "must have at least one text; the list is empty")
    if set(map(type, value)) == {str}:
        return value
    items = []
    for position, given in enumerate(value):
        item = read(given)
        if item is None:
            raise _explain(position, given, what)
        items.append(item)
    return items


def _read_text(given: Any) -> Any:
    return given if isinstance(given, str) else None


def _read_ids(given: Any) -> TokenIdsInput | None:
    is_ids = isinstance(given, list) and set(map(type, given)) == {int}
    return TokenIdsInput(tuple(given)) if is_ids else None


def _read_text_or_ids(given: Any) -> Any:
    return given if isinstance(given, str) else _read_ids(given)


def _read_document(given: Any) -> Any:
    if not isinstance(given, dict):
        return _read_text(given)
    parts = given.get("content")
    if isinstance(parts, list) and len(parts) == 1 and isinstance(parts[0], dict):
        return _read_text(parts[0].get("text"))
    return _read_text(given.get("text"))


def _read_document_or_ids(given: Any) -> Any:
    return _read_ids(given) or _read_document(given)


def _read_text_or_pair(given: Any) -> Any:
    if isinstance(given, list) and len(given) == 2 and set(map(type, given)) == {str}:
        return tuple(given)
    return _read_text(given)


def _read_any(given: Any) -> Any:
    return _read_text_or_pair(given) or _read_text_or_ids(given)


def _explain(position: int, wrong: Any, what: str) -> PydanticCustomError:
    if _is_token_id(wrong) or (isinstance(wrong, list) and wrong and _is_token_id(wrong[0])):
        return PydanticCustomError("string_type", TOKEN_IDS_MESSAGE)
    return PydanticCustomError(
        "string_type", f"must be a list of {what}; item {position} is {_describe_type(wrong)}"
    )


def _is_token_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _describe_type(value: Any) -> str:
    return _TYPE_NAMES[type(value)]


def _array_schema(*items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": {"anyOf": list(items)}, "minItems": 1}


_DOCUMENT = {"type": "object", "properties": {"text": _STRING}, "required": ["text"]}
_PAIR = {"type": "array", "items": _STRING, "minItems": 2, "maxItems": 2}

Inputs = Annotated[
    list[str],
    PlainValidator(parse_inputs),
    WithJsonSchema(
        {
            "anyOf": [_STRING, _array_schema(_STRING)],
            "description": "A text or a list of texts; URLs or data URIs for images and audio. Texts may be"
            " empty.",
        }
    ),
]
TOKEN_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
TextsOrIds = Annotated[
    list[str | TokenIdsInput],
    PlainValidator(parse_texts_or_ids),
    WithJsonSchema(
        {
            "anyOf": [_STRING, _array_schema(_STRING, TOKEN_IDS_SCHEMA), TOKEN_IDS_SCHEMA],
            "description": "A text or a list of texts; URLs or data URIs for images and audio. Texts may be"
            " empty. If the server accepts token ids, a list of them is accepted in place of a text.",
        }
    ),
]
Documents = Annotated[
    list[str],
    PlainValidator(parse_documents),
    WithJsonSchema(
        {**_array_schema(_STRING, _DOCUMENT), "description": "A list of texts, or of objects with a `text`."}
    ),
]
TextsOrPairs = Annotated[
    list[str | tuple[str, str]],
    PlainValidator(parse_texts_or_pairs),
    WithJsonSchema(
        {
            "anyOf": [_STRING, _array_schema(_STRING, _PAIR)],
            "description": "A text, or a list of texts and of pairs of texts; a pair is encoded together.",
        }
    ),
]
TextsPairsOrIds = Annotated[
    list[str | tuple[str, str] | TokenIdsInput],
    PlainValidator(parse_texts_pairs_or_ids),
    WithJsonSchema(
        {
            "anyOf": [_STRING, _array_schema(_STRING, _PAIR, TOKEN_IDS_SCHEMA), TOKEN_IDS_SCHEMA],
            "description": "A text, or a list of texts and of pairs of texts; a pair is encoded together."
            " Lists of token ids are those of the model.",
        }
    ),
]
