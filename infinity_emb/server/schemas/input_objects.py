"""Jina's members of `input`: objects that say what they are, a text or an image.

They are taken apart before the schema reads the body, which then looks as if its client had sent `modality`.
Source: https://api.jina.ai/redoc
"""

from __future__ import annotations

from typing import Any

from infinity_emb.server.validation import body_error

_KINDS = ("text", "image")
_OBJECT_SCHEMAS = [
    {"type": "object", "properties": {kind: {"type": "string"}}, "required": [kind]} for kind in _KINDS
]


def unwrap_objects(members: Any) -> Any:
    """A body, in whose `input` each `{"text": …}` and `{"image": …}` is replaced by what it holds.

    Raises a 422 for texts beside images, and where `modality` says something else.
    """
    given = members.get("input")
    if not isinstance(given, list) or dict not in set(map(type, given)):
        return members
    kinds = [_kind_of(each) for each in given]
    if None in kinds:
        message = f"member {kinds.index(None)} is an object that does not have either a `text` or an `image`"
        raise body_error("string_type", message, loc=["input"], given=given)
    if len(set(kinds)) > 1:
        message = "has texts and images, and a request has one kind; send two requests"
        raise body_error("mixed_input", message, loc=["input"], given=given)
    kind = kinds[0]
    if members.get("modality") not in (None, kind):
        message = f"is not what the members of 'input' say, which is {kind!r}; leave it out"
        raise body_error("contradiction", message, loc=["modality"], given=members["modality"])
    unwrapped = [each[kind] if isinstance(each, dict) else each for each in given]
    values = [_to_source(each) for each in unwrapped] if kind == "image" else unwrapped
    return {**members, "input": values, "modality": kind}


def describe_objects(schema: dict[str, Any]) -> None:
    """Adds the objects to what the document says of `input`."""
    objects = {"type": "array", "items": {"anyOf": _OBJECT_SCHEMAS}, "minItems": 1}
    schema["anyOf"] = [*schema["anyOf"], objects]
    schema["description"] += (
        ' Its members may be objects, `{"text": …}` or `{"image": …}`, the latter with a URL, a data URI or'
        " bare base64."
    )


def _kind_of(member: Any) -> str | None:
    """None for an object that does not say it; what is no object is for the schema to read as a text."""
    if not isinstance(member, dict):
        return "text"
    kinds = [kind for kind in _KINDS if isinstance(member.get(kind), str)]
    return kinds[0] if len(kinds) == 1 else None


def _to_source(image: str) -> str:
    """A URL or a data URI; anything else is base64."""
    is_source = image.lower().startswith(("data:", "http:", "https:"))
    return image if is_source else f"data:;base64,{image}"
