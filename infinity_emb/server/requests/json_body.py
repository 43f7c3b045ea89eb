"""Read JSON bodies with orjson and fit them to pydantic schemas.

FastAPI's own way costs twice the time and explains common mistakes of clients less well.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import orjson
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from infinity_emb.scheduling.fair_threads import FairThreads
from infinity_emb.server.request_errors import body_error
from infinity_emb.server.requests.body import BodyReader
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


class Counts(NamedTuple):
    """The parts of a JSON document that cost time to parse; values are counted by their commas."""

    num_containers: int
    num_members: int
    num_texts: int
    num_values: int


MAX_COUNTS = Counts(num_containers=2**17, num_members=2**17, num_texts=2**18, num_values=2**20)
# Characters beyond U+FFFF, such as emoji, make a text take 4 bytes a character. `orjson` fills that memory in
# one call, which no other thread interrupts.
MAX_WIDE_BYTES = 2**24
# Parsing less takes some milliseconds at most.
MIN_THREADED_BYTES = 2**20
_MAX_QUICK_COUNTS = Counts(2**12, 2**12, 2**14, 2**15)
_NOT_STRUCTURAL = bytes(set(range(256)) - set(b'[{:",'))
_BLOCK_BYTES = 2**20
# Of a character beyond U+FFFF: its first byte in UTF-8, and the beginning of its escape.
_FIRST_BYTE_OF_FOUR = 0xF0
_HIGH_SURROGATE = re.compile(rb"\\u[dD][89abAB]")


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
            check_content_type(request.headers.get("content-type"))
        raw = await self._bodies.read(request, held)
        if len(raw) < MIN_THREADED_BYTES and _is_quick(raw):
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


def parse_json(raw: bytes | bytearray) -> dict[str, Any]:
    """Parse a JSON object in any encoding of Unicode; half of a surrogate pair is read as U+FFFD.

    Raises RequestValidationError, and HTTPException 413 for characters that take too much memory.
    """
    check_counts(raw)
    return _parse_checked(raw)


def _parse_checked(raw: bytes | bytearray) -> dict[str, Any]:
    """Parse a JSON object of not too many parts."""
    _check_width(raw)
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


def _parse_and_measure(raw: bytes | bytearray) -> _Parsed:
    fields = parse_json(raw)
    return _Parsed(fields, measure_fields(fields, len(raw)))


def _parse(raw: bytes | bytearray) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        repaired = repair_json(raw)
        check_counts(repaired)
        _check_width(repaired)
        return orjson.loads(repaired)


def check_counts(raw: bytes | bytearray) -> None:
    """Raise RequestValidationError for JSON with more parts than any request needs.

    Megabytes of `[],[],` or `1,1,` would take seconds: each value becomes a Python object, and is visited.
    """
    if _is_within(_count_parts(raw), MAX_COUNTS):
        return
    counts = _count_outside_strings(raw)
    if not _is_within(counts, MAX_COUNTS):
        message = (
            "the body has {} lists and objects, {} members, {} texts and about {} values; the limits are"
            " {}, {}, {} and {}; send fewer inputs in one request"
        )
        raise body_error("json_invalid", message.format(*counts, *MAX_COUNTS))


def _check_width(raw: bytes | bytearray) -> None:
    if len(raw) <= MAX_WIDE_BYTES:
        return
    # Other encodings are looked at again as UTF-8.
    is_utf8 = json.detect_encoding(bytes(raw[:4])).startswith("utf-8")
    if is_utf8 and _has_wide_characters(raw):
        raise HTTPException(
            413,
            f"the request body has {len(raw)} bytes, and the limit is {MAX_WIDE_BYTES} with characters beyond"
            " U+FFFF, such as emoji, as a text with one takes 4 bytes a character; send fewer inputs in one"
            " request",
        )


def _has_wide_characters(raw: bytes | bytearray) -> bool:
    has_bytes = np.frombuffer(raw, dtype=np.uint8).max() >= _FIRST_BYTE_OF_FOUR
    return bool(has_bytes) or _HIGH_SURROGATE.search(raw) is not None


def _is_quick(raw: bytes | bytearray) -> bool:
    """Return true for JSON that is parsed in some milliseconds, as it has few characters or few parts."""
    if len(raw) <= min(_MAX_QUICK_COUNTS):
        return True
    # One pass over the body is faster than one for each kind of part.
    return _is_within(_count_parts(raw.translate(None, _NOT_STRUCTURAL)), _MAX_QUICK_COUNTS)


def _count_parts(raw: bytes | bytearray) -> Counts:
    """Count brackets, colons, quotes and commas, wherever they are."""
    num_containers = raw.count(b"[") + raw.count(b"{")
    return Counts(num_containers, raw.count(b":"), raw.count(b'"') // 2, raw.count(b","))


def _is_within(counts: Counts, limits: Counts) -> bool:
    return all(map(operator.le, counts, limits))


def _count_outside_strings(raw: bytes | bytearray) -> Counts:
    """Count in blocks: between the quotes of a body of many strings lie millions of pieces."""
    counts, num_quotes = Counts(0, 0, 0, 0), 0
    state = np.zeros(1, dtype=np.bool_)  # true inside of a string
    for escaped in _split_into_blocks(raw):
        without_escapes = escaped.replace(rb"\\", b"").replace(rb"\"", b"")
        block = np.frombuffer(without_escapes, dtype=np.uint8)
        is_quote = block == ord('"')
        num_quotes += int(np.count_nonzero(is_quote))
        is_inside = np.logical_xor.accumulate(np.concatenate([state, is_quote]))
        counts = Counts(*map(operator.add, counts, _count_parts(block[~is_inside[1:]].tobytes())))
        state = is_inside[-1:]
    return counts._replace(num_texts=num_quotes // 2)


def _split_into_blocks(raw: bytes | bytearray) -> Iterator[bytes]:
    """Yield blocks that do not end within an escape."""
    start = 0
    while start < len(raw):
        block = bytes(raw[start : start + _BLOCK_BYTES])
        num_backslashes = len(block) - len(block.rstrip(b"\\"))
        if num_backslashes % 2:
            block = bytes(raw[start : start + _BLOCK_BYTES + 1])
        yield block
        start += len(block)


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
