"""Raise and describe validation errors: short, and also as one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

MAX_TEXT = 200
MAX_ITEMS = 3
MAX_DETAILS = 20
MAX_MESSAGES = 3


def body_error(kind: str, message: str, *, loc: Sequence[str | int] = (), given: object = None) -> Exception:
    """Make a 422 about one part of the body."""
    detail = {"type": kind, "loc": ["body", *loc], "msg": message, "input": given}
    return RequestValidationError([detail])


def header_error(name: bytes, message: str, given: str) -> Exception:
    """Make a 422 about one header."""
    detail = {"type": "header", "loc": ["header", name.decode()], "msg": message, "input": given}
    return RequestValidationError([detail])


def describe_errors(errors: Sequence[Any]) -> list[dict[str, Any]]:
    """Return `type`, `loc`, `msg` and a shortened `input` of each error."""
    return [
        {
            "type": error["type"],
            "loc": [shorten(part) for part in error["loc"]],
            "msg": error["msg"],
            "input": shorten(error.get("input")),
        }
        for error in errors[:MAX_DETAILS]
    ]


def summarize_errors(details: Sequence[dict[str, Any]]) -> tuple[str, str | None]:
    """Return one sentence for all errors, and the field of the first."""
    fields = [_find_field(detail) for detail in details]
    texts = [
        f"{field}: {detail['msg']}" if field else detail["msg"]
        for field, detail in zip(fields, details[:MAX_MESSAGES], strict=False)
    ]
    if len(details) > MAX_MESSAGES:
        texts.append(f"and {len(details) - MAX_MESSAGES} more")
    return "; ".join(texts), fields[0]


def _find_field(detail: dict[str, Any]) -> str | None:
    """Return `input` for `["body", "input", 3]`, or None for an error about the whole body."""
    return next((part for part in detail["loc"][1:] if isinstance(part, str)), None)


def shorten(value: object, depth: int = 2) -> object:
    """Shorten a JSON value: long strings, and lists and objects with many items."""
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return f"{value[:MAX_TEXT]}... ({len(value)} characters)"
    if isinstance(value, (list, dict)) and depth == 0:
        return f"({len(value)} items)"
    if isinstance(value, list):
        items = [shorten(item, depth - 1) for item in value[:MAX_ITEMS]]
        return [*items, f"({len(value)} items)"] if len(value) > MAX_ITEMS else items
    if isinstance(value, dict):
        kept = dict(list(value.items())[: 2 * MAX_ITEMS])
        return {str(shorten(key)): shorten(item, depth - 1) for key, item in kept.items()}
    return value
