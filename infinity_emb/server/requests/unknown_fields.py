"""Check the fields of a body that its schema does not have.

Unknown fields are ignored, since clients send many that mean nothing here. But a field that would change
the result is refused by name, and so is one that is almost the name of another.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from typing import Any

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from infinity_emb.server.request_errors import body_error
from infinity_emb.server.schemas.common import JsonBody, TaskRequest

# Minimum similarity of two names, up to 1: one letter added, removed or changed.
_TYPO = 0.87
_SIMILAR = 0.7  # for a missing field and an unknown one
_MAX_CHARS = 64
_MAX_UNKNOWN = 32
# Names that clients use for the same field.
_SYNONYMS = (
    ("input", "inputs", "texts", "text", "sentences", "documents", "docs", "passages", "prompt", "content"),
    ("query", "queries", "question", "q", "source_sentence"),
)
# Names of the inputs on the routes of the dialects.
_INPUTS = frozenset({"input", "inputs", "texts", "sentences", "documents", "passages", "images"})
# Fields that change the result on the routes of some dialect; those on one line have similar meanings.
_RESULT_FIELDS = (
    ("dimensions", "output_dimension", "output_dimensionality", "truncate_dim", "matryoshka_dim"),
    ("instruction", "prompt", "instruct", "query_instruction"),
    ("prompt_name", "input_type", "task_type", "text_type"),
    ("truncate_prompt_tokens", "max_tokens", "max_length", "max_seq_length"),
    ("max_tokens_per_doc", "max_tokens_per_query"),
    ("normalize", "normalized", "use_activation", "normalize_embeddings", "embd_normalize"),
    ("use_activation", "raw_scores", "activation"),
    ("embedding_dtype", "output_dtype", "embedding_type", "embedding_types", "precision"),
    ("truncation_side", "truncation_direction"),
    ("late_chunking", "chunking", "late_chunking_params"),
    ("pooling", "pooling_type", "pooling_mode"),
)
# Values that request the default behaviour.
_DEFAULT_VALUES: tuple[object, ...] = (
    None,
    False,
    -1,
    "",
    [],
    {},
    "float",
    "float32",
    ["float"],
    "right",
    "Right",
)


def check_refused_fields(schema: type[JsonBody], fields: Mapping[str, Any]) -> None:
    """Raise a 422 for a field that would change the result, and that the server does not support."""
    if not issubclass(schema, TaskRequest):
        return
    for name in schema.refused.keys() & fields.keys() - list_field_names(schema):
        refusal = schema.refused[name]
        if fields[name] not in refusal.harmless:
            raise body_error("not_supported", f"is not supported; {refusal.remedy}", loc=[name])
    for name in list_foreign_fields(schema) & fields.keys():
        if fields[name] not in _DEFAULT_VALUES:
            remedy = suggest_synonym(schema, name)
            raise body_error("not_supported", f"is not supported by this route; {remedy}", loc=[name])


def check_other_inputs(schema: type[JsonBody], fields: Mapping[str, Any]) -> None:
    """Raise a 422 for inputs under the name of another dialect beside those that are read."""
    given = fields.get(schema.input_field) if issubclass(schema, TaskRequest) else None
    if given is None:
        return
    for name in list_unknown(schema, fields):
        if name in _INPUTS and fields[name] not in (None, "", []) and _differ(fields[name], given):
            message = f"conflicts with {schema.input_field!r}; send only one"
            raise body_error("contradiction", message, loc=[name], given=fields[name])


@functools.cache
def list_foreign_fields(schema: type[TaskRequest]) -> frozenset[str]:
    """List the fields that change the result on other routes, and that the schema does not have.

    A schema with extra fields selects another schema, which checks them.
    """
    if schema.model_config.get("extra") == "allow":
        return frozenset()
    known = list_field_names(schema)
    names = {name for group in _RESULT_FIELDS for name in group} - known - schema.refused.keys()
    return frozenset(name for name in names if not difflib.get_close_matches(name, known, cutoff=_TYPO))


def suggest_synonym(schema: type[TaskRequest], name: str) -> str:
    """Return the remedy for a field of another route."""
    groups = (group for group in _RESULT_FIELDS if name in group)
    known = [each for group in groups for each in group if each in list_field_names(schema)]
    return f"send {known[0]!r}" if known else "leave it out"


def resolve_aliases(schema: type[JsonBody], fields: dict[str, Any]) -> dict[str, Any]:
    """Keep one name of each field that is given under several, preferably one with a value.

    Raises a 422 if the values differ. pydantic takes the first name, whatever its value.
    """
    for names in list_aliases(schema):
        given = [name for name in names if name in fields]
        filled = [name for name in given if fields[name] is not None]
        for name in filled[1:]:
            if _differ(fields[name], fields[filled[0]]):
                message = f"conflicts with {filled[0]!r}; send only one"
                raise body_error("contradiction", message, loc=[name], given=fields[name])
        dropped = set(given) - set(filled[:1] or given[:1])
        if dropped:
            fields = {name: value for name, value in fields.items() if name not in dropped}
    return fields


def _differ(value: Any, other: Any) -> bool:
    try:
        return bool(value != other)
    except RecursionError:  # lists in lists, deeper than any field's value
        return True


@functools.cache
def list_aliases(schema: type[JsonBody]) -> tuple[tuple[str, ...], ...]:
    """List the names of each field that has several."""
    names = (tuple(_list_names(name, info)) for name, info in schema.model_fields.items())
    return tuple(each for each in names if len(each) > 1)


def check_misspelt_fields(schema: type[JsonBody], fields: Mapping[str, Any]) -> None:
    """Raise a 422 for an unknown field that is almost the name of a known one."""
    if schema.model_config.get("extra") == "allow":
        return
    known = list_field_names(schema)
    for name in list_unknown(schema, fields):
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=_TYPO)
        if nearest and nearest[0] not in fields and fields[name] is not None:
            message = f"is unknown; did you mean {nearest[0]!r}?"
            raise body_error("unknown_field", message, loc=[name], given=fields[name])


def suggest_field(schema: type[JsonBody], missing: str, fields: Mapping[str, Any]) -> str:
    """Return "; did you mean ...?" if an unknown field probably stands for the missing one, or ""."""
    unknown = list_unknown(schema, fields)
    synonyms = next((group for group in _SYNONYMS if missing in group), ())
    candidates = [name for name in unknown if name in synonyms]
    candidates += difflib.get_close_matches(missing, unknown, n=1, cutoff=_SIMILAR)
    return f"; did you mean {missing!r} instead of {candidates[0]!r}?" if candidates else ""


def list_unknown(schema: type[JsonBody], fields: Mapping[str, Any]) -> list[str]:
    """List the fields that the schema does not have, the first of them if there are many."""
    unknown = fields.keys() - list_field_names(schema) if fields else set()
    return [name for name in fields if name in unknown and len(name) <= _MAX_CHARS][:_MAX_UNKNOWN]


@functools.cache
def list_field_names(schema: type[JsonBody]) -> frozenset[str]:
    """List the names of the fields of a schema, aliases included."""
    return frozenset(alias for name, info in schema.model_fields.items() for alias in _list_names(name, info))


def _list_names(name: str, info: FieldInfo) -> list[str]:
    alias = info.validation_alias
    return list(map(str, alias.choices)) if isinstance(alias, AliasChoices) else [name]
