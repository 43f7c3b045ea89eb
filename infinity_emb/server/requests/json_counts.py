"""Count the parts of a JSON document before it is parsed, and limit what takes long to parse.

Blocks of the document are looked at one after the other: a call that scans 30 MB at once would hold the
interpreter lock, and with it the event loop, for up to half a second.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from starlette.exceptions import HTTPException

from infinity_emb.server.request_errors import body_error
from infinity_emb.server.requests.json_text import BLOCK_BYTES, split_between_escapes

Bytes: TypeAlias = "npt.NDArray[np.uint8]"


class Counts(NamedTuple):
    """The parts of a JSON document that cost time to parse; values are counted by their commas."""

    num_containers: int
    num_fields: int
    num_texts: int
    num_values: int


MAX_COUNTS = Counts(num_containers=2**17, num_fields=2**17, num_texts=2**18, num_values=2**20)
# Characters beyond U+FFFF, such as emoji, make a text take 4 bytes a character. `orjson` fills that memory in
# one call, which no other thread interrupts.
MAX_WIDE_BYTES = 2**24
# What is parsed in some milliseconds.
_MAX_QUICK_COUNTS = Counts(2**12, 2**12, 2**14, 2**15)
_STRUCTURAL = b'[{:",'
# Of a character beyond U+FFFF: its first byte in UTF-8, and the length of the beginning of its escape.
_FIRST_BYTE_OF_FOUR = 0xF0
_ESCAPE_BYTES = 4


def is_quick(raw: bytes) -> bool:
    """Return true for JSON that is parsed in some milliseconds, as it has few characters or few parts."""
    return len(raw) <= min(_MAX_QUICK_COUNTS) or _is_within(_count_parts(raw), _MAX_QUICK_COUNTS)


def check_counts(raw: bytes) -> None:
    """Raise RequestValidationError for JSON with more parts than any request needs.

    Megabytes of `[],[],` or `1,1,` would take seconds: each value becomes a Python object, and is visited.
    """
    if _is_within(_count_parts(raw), MAX_COUNTS):
        return
    counts = _count_outside_strings(raw)
    if not _is_within(counts, MAX_COUNTS):
        message = (
            "the body has {} lists and objects, {} fields, {} texts and about {} values; the limits are"
            " {}, {}, {} and {}; send fewer inputs in one request"
        )
        raise body_error("json_invalid", message.format(*counts, *MAX_COUNTS))


def check_width(raw: bytes) -> None:
    """Raise HTTPException 413 for large JSON with characters that take four bytes each."""
    if len(raw) <= MAX_WIDE_BYTES:
        return
    # Other encodings are looked at again as UTF-8.
    is_utf8 = json.detect_encoding(raw[:4]).startswith("utf-8")
    if is_utf8 and _has_wide_characters(np.frombuffer(raw, dtype=np.uint8)):
        raise HTTPException(
            413,
            f"the request body has {len(raw)} bytes, and the limit is {MAX_WIDE_BYTES} with characters beyond"
            " U+FFFF, such as emoji, as a text with one takes 4 bytes a character; send fewer inputs in one"
            " request",
        )


def _has_wide_characters(data: Bytes) -> bool:
    starts = range(0, len(data), BLOCK_BYTES)
    return any(_is_wide(data[start : start + BLOCK_BYTES + _ESCAPE_BYTES - 1]) for start in starts)


def _is_wide(block: Bytes) -> bool:
    """Return true for a block with a character beyond U+FFFF, or with the escape of half of one."""
    if block.max() >= _FIRST_BYTE_OF_FOUR:
        return True
    is_escape = block[:-3] == ord("\\")
    if not is_escape.any():
        return False
    is_escape &= block[1:-2] == ord("u")
    is_escape &= (block[2:-1] | 0x20) == ord("d")
    is_escape &= block[3:] > ord("7")
    return bool(is_escape.any())


def _count_parts(raw: bytes) -> Counts:
    """Count brackets, colons, quotes and commas, wherever they are."""
    data = np.frombuffer(raw, dtype=np.uint8)
    starts = range(0, len(data), BLOCK_BYTES)
    return _sum_counts(_count_structural(data[start : start + BLOCK_BYTES]) for start in starts)


def _count_outside_strings(raw: bytes) -> Counts:
    """Count what is not in a string."""

    def count() -> Iterator[list[int]]:
        is_inside_before = np.zeros(1, dtype=np.bool_)
        for escaped in split_between_escapes(raw, BLOCK_BYTES):
            without_escapes = escaped.replace(rb"\\", b"").replace(rb"\"", b"")
            block = np.frombuffer(without_escapes, dtype=np.uint8)
            is_quote = block == ord('"')
            is_inside = np.logical_xor.accumulate(np.concatenate([is_inside_before, is_quote]))
            yield _count_structural(block[is_quote | ~is_inside[1:]])
            is_inside_before = is_inside[-1:]

    return _sum_counts(count())


def _count_structural(block: Bytes) -> list[int]:
    return [int(np.count_nonzero(block == character)) for character in _STRUCTURAL]


def _sum_counts(counts: Iterable[list[int]]) -> Counts:
    sums = map(sum, zip(*counts, strict=True))
    lists, objects, colons, quotes, commas = (*sums,) or (0,) * len(_STRUCTURAL)
    return Counts(lists + objects, colons, quotes // 2, commas)


def _is_within(counts: Counts, limits: Counts) -> bool:
    return all(map(operator.le, counts, limits))
