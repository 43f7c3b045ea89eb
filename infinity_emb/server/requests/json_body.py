"""Read JSON bodies with orjson and fit them to pydantic schemas.

FastAPI's own way costs twice the time and explains common mistakes of clients less well.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import orjson
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from infinity_emb.scheduling.fair_threads import FairThreads
from infinity_emb.server.request_errors import body_error
from infinity_emb.server.requests.body import BodyReader
from infinity_emb.server.requests.headers import find_header
from infinity_emb.server.requests.json_counts import check_counts, check_width, is_quick
from infinity_emb.server.requests.json_long_texts import parse_document
from infinity_emb.server.requests.json_text import repair_json
from infinity_emb.server.requests.memory import HeldMemory, measure_fields
from infinity_emb.server.requests.unknown_fields import (
    check_misspelt_fields,
    check_other_inputs,
    check_refused_fields,
    list_field_names,
    resolve_aliases,
    suggest_field,
)
from infinity_emb.server.schemas.common import JsonBody

Schema = TypeVar("Schema", bound=JsonBody)


# Parsing less takes some milliseconds at most.
MIN_THREADED_BYTES = 2**18


class JsonReader:
    """Read JSON bodies; large ones are parsed on a thread, in turns of their clients."""

    def __init__(self, bodies: BodyReader, threads: FairThreads) -> None:
        self._bodies = bodies
        self._threads = threads

    async def read(
        self, request: Request, held: HeldMemory, *, needs_content_type: bool = True
    ) -> dict[str, Any]:
        """Read the body as a JSON object, and count what it takes in memory.

        needs_content_type: raise HTTPException 415 for a body with another content type than JSON's.
        Raises RequestValidationError for invalid JSON, and what `BodyReader.read` raises.
        """
        if needs_content_type:
            check_content_type(find_header(request.scope, b"content-type"))
        raw = await self._bodies.read(request, held)
        if len(raw) < MIN_THREADED_BYTES and is_quick(raw):
            fields = _parse_checked(raw)
            held.hold(measure_fields(fields, len(raw)))
            return fields
        parsed = await self._threads.run(lambda: _parse_and_measure(raw), num_chars=len(raw))
        held.hold(parsed.num_bytes)
        return parsed.fields

    async def validate(self, schema: type[Schema], fields: dict[str, Any], held: HeldMemory) -> Schema:
        """Fit the fields to a schema, those of a large body on the thread. Raises RequestValidationError."""
        if held.num_bytes < MIN_THREADED_BYTES:
            return fit_schema(schema, fields)
        return await self._threads.run(lambda: fit_schema(schema, fields), num_chars=held.num_bytes)


class _Parsed(NamedTuple):
    fields: dict[str, Any]
    num_bytes: int


def check_content_type(content_type: str | None) -> None:
    """Raise HTTPException 415 unless the header says JSON or is missing.

    Browsers send the types of forms and of plain text to any server without asking it first.
    """
    media_type = (content_type or "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise HTTPException(
            415,
            f"the content type {content_type!r} is not JSON; set the header 'Content-Type: application/json'",
        )


def parse_json(raw: bytes) -> dict[str, Any]:
    """Parse a JSON object in any encoding of Unicode; half of a surrogate pair is read as U+FFFD.

    Raises RequestValidationError, and HTTPException 413 for characters that take too much memory.
    """
    check_counts(raw)
    return _parse_checked(raw)


def _parse_checked(raw: bytes) -> dict[str, Any]:
    """Parse a JSON object of not too many parts."""
    check_width(raw)
    try:
        fields = _parse(raw)
    except orjson.JSONDecodeError as exc:
        raise body_error("json_invalid", f"the body is not valid JSON: {exc}", loc=[exc.pos]) from None
    except UnicodeDecodeError as exc:
        message = (
            f"the body is not valid JSON: {exc.reason} at byte {exc.start} of text in {exc.encoding};"
            " send UTF-8"
        )
        raise body_error("json_invalid", message, loc=[exc.start]) from None
    if not isinstance(fields, dict):
        raise body_error("model_attributes_type", "the body must be a JSON object", given=fields)
    return fields


def _parse_and_measure(raw: bytes) -> _Parsed:
    fields = parse_json(raw)
    return _Parsed(fields, measure_fields(fields, len(raw)))


def _parse(raw: bytes) -> Any:
    try:
        return parse_document(raw)
    except orjson.JSONDecodeError:
        repaired = repair_json(raw)
        check_counts(repaired)
        check_width(repaired)
        return parse_document(repaired)


def fit_schema(schema: type[Schema], fields: dict[str, Any]) -> Schema:
    """Validate the fields of a body. Raises RequestValidationError."""
    has_unknown = not fields.keys() <= list_field_names(schema)
    if has_unknown:
        check_refused_fields(schema, fields)
        check_other_inputs(schema, fields)
    fields = resolve_aliases(schema, fields)
    try:
        body = schema.model_validate(fields)
    except ValidationError as exc:
        errors = exc.errors(include_url=False, include_context=False)
        raise RequestValidationError([_locate(error, schema, fields) for error in errors]) from None
    if has_unknown:
        check_misspelt_fields(schema, fields)
    return body


def _locate(error: Any, schema: type[JsonBody], fields: dict[str, Any]) -> dict[str, Any]:
    """Say where in the body an error is, and which other field may stand for a missing one."""
    hint = suggest_field(schema, str(error["loc"][0]), fields) if error["type"] == "missing" else ""
    return {**error, "msg": error["msg"] + hint, "loc": ("body", *error["loc"])}
