"""Items of `input` that are objects with a text or an image, as Jina's clients send them.

They are unwrapped before validation, as if the client had sent `modality`.
Source: https://api.jina.ai/redoc
"""

from __future__ import annotations

from typing import Any

from infinity_emb.server.request_errors import body_error

_KINDS = ("text", "image")
_OBJECT_SCHEMAS = [
    {"type": "object", "properties": {kind: {"type": "string"}}, "required": [kind]} for kind in _KINDS
]


def unwrap_objects(body: Any) -> Any:
    """Replace each `{"text": …}` and `{"image": …}` in the `input` of a body by its value.

    Raises a 422 for texts mixed with images, and for a different `modality`.
    """
    given = body.get("input")
    if not isinstance(given, list) or dict not in set(map(type, given)):
        return body
    kinds = [_detect_kind(item) for item in given]
    if None in kinds:
        message = f"item {kinds.index(None)} is an object that needs either a `text` or an `image`"
        raise body_error("string_type", message, loc=["input"], given=given)
    if len(set(kinds)) > 1:
        message = "mixes texts and images; send two requests"
        raise body_error("mixed_input", message, loc=["input"], given=given)
    kind = kinds[0]
    if body.get("modality") not in (None, kind):
        message = f"conflicts with the items of 'input', which are of modality {kind!r}; leave it out"
        raise body_error("contradiction", message, loc=["modality"], given=body["modality"])
    unwrapped = [item[kind] if isinstance(item, dict) else item for item in given]
    values = [_to_uri(image) for image in unwrapped] if kind == "image" else unwrapped
    return {**body, "input": values, "modality": kind}


def describe_objects(schema: dict[str, Any]) -> None:
    """Document the objects in the JSON schema of `input`."""
    objects = {"type": "array", "items": {"anyOf": _OBJECT_SCHEMAS}, "minItems": 1}
    schema["anyOf"] = [*schema["anyOf"], objects]
    schema["description"] += (
        ' Items may be objects, `{"text": …}` or `{"image": …}`, the latter with a URL, a data URI or base64.'
    )


def _detect_kind(item: Any) -> str | None:
    """Return None for an object that is neither; other values count as texts, which validation checks."""
    if not isinstance(item, dict):
        return "text"
    kinds = [kind for kind in _KINDS if isinstance(item.get(kind), str)]
    return kinds[0] if len(kinds) == 1 else None


def _to_uri(image: str) -> str:
    """Return a URL or data URI unchanged; anything else is base64."""
    is_uri = image.lower().startswith(("data:", "http:", "https:"))
    return image if is_uri else f"data:;base64,{image}"
