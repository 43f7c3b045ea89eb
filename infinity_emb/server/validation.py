"""Validation errors as clients may see them: short, and in one sentence too.

Knows FastAPI's and pydantic's error dictionaries, nothing of particular schemas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

MAX_TEXT = 200
MAX_MEMBERS = 3
MAX_DETAILS = 20
MAX_MESSAGES = 3


def body_error(kind: str, message: str, *, loc: Sequence[str | int] = (), given: object = None) -> Exception:
    """A 422 about one place in the body."""
    detail = {"type": kind, "loc": ["body", *loc], "msg": message, "input": given}
    return RequestValidationError([detail])


def header_error(name: str, message: str, given: str) -> Exception:
    """A 422 about one header."""
    detail = {"type": "header", "loc": ["header", name], "msg": message, "input": given}
    return RequestValidationError([detail])


def readable_details(errors: Sequence[Any]) -> list[dict[str, Any]]:
    """`type`, `loc`, `msg` and `input` of each error, the input cut to what a person reads."""
    return [
        {
            "type": error["type"],
            "loc": list(error["loc"]),
            "msg": error["msg"],
            "input": shortened(error.get("input")),
        }
        for error in errors[:MAX_DETAILS]
    ]


def summary_of(details: Sequence[dict[str, Any]]) -> tuple[str, str | None]:
    """One sentence for all errors, and the field of the first."""
    fields = [_field_of(detail) for detail in details]
    texts = [
        f"{field}: {detail['msg']}" if field else detail["msg"]
        for field, detail in zip(fields, details[:MAX_MESSAGES], strict=False)
    ]
    if len(details) > MAX_MESSAGES:
        texts.append(f"and {len(details) - MAX_MESSAGES} more")
    return "; ".join(texts), fields[0]


def _field_of(detail: dict[str, Any]) -> str | None:
    """`input` of `["body", "input", 3]`; None where the whole body is meant."""
    return next((part for part in detail["loc"][1:] if isinstance(part, str)), None)


def shortened(value: object, depth: int = 2) -> object:
    """A JSON value without the bulk: long texts cut, three members of a list or object."""
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return f"{value[:MAX_TEXT]}... ({len(value)} characters)"
    if isinstance(value, (list, dict)) and depth == 0:
        return f"({len(value)} members)"
    if isinstance(value, list):
        members = [shortened(each, depth - 1) for each in value[:MAX_MEMBERS]]
        return [*members, f"({len(value)} members)"] if len(value) > MAX_MEMBERS else members
    if isinstance(value, dict):
        kept = dict(list(value.items())[: 2 * MAX_MEMBERS])
        return {str(shortened(key)): shortened(each, depth - 1) for key, each in kept.items()}
    return value
