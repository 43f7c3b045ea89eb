"""Check the members of a body that its schema does not have.

Unknown members are ignored, since clients send many that mean nothing here. But a member that would change
the result is refused by name, and so is one that is almost the name of another.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from typing import Any

from pydantic import AliasChoices

from infinity_emb.server.request_errors import body_error
from infinity_emb.server.schemas.common import JsonBody, TaskRequest

# How alike two names must be, of 1: a letter more, less or exchanged.
_TYPO = 0.87
_SIMILAR = 0.7  # what may stand for a missing member
_MAX_CHARS = 64
_MAX_UNKNOWN = 32
# What clients call the same thing.
_SYNONYMS = (
    ("input", "inputs", "texts", "text", "sentences", "documents", "docs", "passages", "prompt", "content"),
    ("query", "queries", "question", "q", "source_sentence"),
)


def check_refused_members(schema: type[JsonBody], fields: Mapping[str, Any]) -> None:
    """Raise a 422 for a member that would change the result, and that the server does not support."""
    if not issubclass(schema, TaskRequest):
        return
    for name in schema.refused.keys() & fields.keys() - list_members(schema):
        refusal = schema.refused[name]
        if fields[name] not in refusal.harmless:
            raise body_error("not_supported", f"is not supported; {refusal.remedy}", loc=[name])


def check_misspelt_members(schema: type[JsonBody], fields: Mapping[str, Any]) -> None:
    """Raise a 422 for an unknown member that is almost the name of a known one."""
    if schema.model_config.get("extra") == "allow":
        return
    known = list_members(schema)
    for name in list_unknown(schema, fields):
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=_TYPO)
        if nearest and nearest[0] not in fields:
            message = f"is unknown; did you mean {nearest[0]!r}?"
            raise body_error("unknown_member", message, loc=[name], given=fields[name])


def suggest_member(schema: type[JsonBody], missing: str, fields: Mapping[str, Any]) -> str:
    """Return "; did you mean ...?" if an unknown member probably stands for the missing one, or ""."""
    unknown = list_unknown(schema, fields)
    synonyms = next((group for group in _SYNONYMS if missing in group), ())
    candidates = [name for name in unknown if name in synonyms]
    candidates += difflib.get_close_matches(missing, unknown, n=1, cutoff=_SIMILAR)
    return f"; did you mean {missing!r} instead of {candidates[0]!r}?" if candidates else ""


def list_unknown(schema: type[JsonBody], fields: Mapping[str, Any]) -> list[str]:
    """List the members that the schema does not have, the first of them if there are many."""
    unknown = fields.keys() - list_members(schema) if fields else set()
    return [name for name in fields if name in unknown and len(name) <= _MAX_CHARS][:_MAX_UNKNOWN]


@functools.cache
def list_members(schema: type[JsonBody]) -> frozenset[str]:
    """List the names of the fields of a schema, aliases included."""
    names = set()
    for name, info in schema.model_fields.items():
        alias = info.validation_alias
        names |= set(map(str, alias.choices)) if isinstance(alias, AliasChoices) else {name}
    return frozenset(names)
