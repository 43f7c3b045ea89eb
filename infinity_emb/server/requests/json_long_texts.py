"""Parse JSON that has texts of megabytes in blocks, so that other threads can run in between.

`orjson` copies a document and fills each text in one call. So what lies between two quotes far apart is taken
out of the document, decoded in blocks, and put back.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import orjson

from infinity_emb.server.requests.json_text import BLOCK_BYTES, find_block_end

# Shorter runs without a quote are parsed at once. A run has this many blocks at least.
_MIN_RUN_BLOCKS = 4
_MAX_CONTINUATION_BYTES = 3  # of a character in UTF-8


class _Run(NamedTuple):
    """Bytes without a quote, from the one before them to the one after them."""

    start: int
    end: int


def parse_document(raw: bytes) -> Any:
    """Parse a JSON document in UTF-8. Raises orjson.JSONDecodeError."""
    runs = list(_find_runs(raw)) if len(raw) > _MIN_RUN_BLOCKS * BLOCK_BYTES else []
    if not runs:
        return orjson.loads(raw)
    try:
        return _parse_without(raw, runs)
    except orjson.JSONDecodeError:
        return orjson.loads(raw)  # says where the document is wrong; outside of a text, a run may be right


def _find_runs(raw: bytes) -> Iterator[_Run]:
    """Find where no block has a quote, and extend the run to both quotes."""
    data = np.frombuffer(raw, dtype=np.uint8)
    num_blocks = 0
    for start in range(0, len(data), BLOCK_BYTES):
        if not (data[start : start + BLOCK_BYTES] == ord('"')).any():
            num_blocks += 1
            continue
        if num_blocks >= _MIN_RUN_BLOCKS and (run := _extend(raw, start - 1)):
            yield run
        num_blocks = 0


def _extend(raw: bytes, place: int) -> _Run | None:
    """Return the run at a place; None if it has no quote before it."""
    start, end = raw.rfind(b'"', 0, place) + 1, raw.find(b'"', place)
    return _Run(start, end) if start else None


def _parse_without(raw: bytes, runs: list[_Run]) -> Any:
    mark = secrets.token_hex(16)
    pieces: list[bytes] = []
    texts: list[list[str]] = []
    reached = 0
    for number, run in enumerate(runs):
        blocks = list(_split_text(raw, run))
        texts.append([orjson.loads(b'"%b"' % raw[start:end]) for start, end in blocks])
        pieces += [raw[reached : run.start], f"{mark}{number:04}".encode()]
        reached = blocks[-1].end
    pieces.append(raw[reached:])
    document = [orjson.loads(b"".join(pieces))]  # in a list, as it may be a text
    _put_back(document, re.compile(f"{mark}([0-9]{{4}})"), texts)
    return document[0]


def _split_text(raw: bytes, run: _Run) -> Iterator[_Run]:
    """Split a run into blocks of whole characters; leave out the backslash of an escaped quote."""
    start = run.start
    while start < run.end:
        end = find_block_end(raw, start, BLOCK_BYTES)
        for _ in range(_MAX_CONTINUATION_BYTES):
            if end < run.end and raw[end] & 0xC0 == 0x80:
                end += 1
        if end >= run.end:
            end = run.end
            num_backslashes = end - start - len(raw[start:end].rstrip(b"\\"))
            if num_backslashes % 2:
                end -= 1
            yield _Run(start, end)
            return
        yield _Run(start, end)
        start = end


def _put_back(document: list[Any], mark: re.Pattern[str], texts: list[list[str]]) -> None:
    """Put the texts into the values and names that have marks in their place."""

    def restore(text: str) -> str:
        parts = mark.split(text)  # every other one is a number
        if len(parts) == 1:
            return text
        whole = [parts[0]]
        for number, rest in zip(parts[1::2], parts[2::2], strict=True):
            whole += [*texts[int(number)], rest]
        return "".join(whole)

    containers: list[Any] = [document]
    while containers:
        container = containers.pop()
        if isinstance(container, dict):
            restored = {restore(name): value for name, value in container.items()}
            container.clear()
            container.update(restored)
        for key, value in list(container.items() if isinstance(container, dict) else enumerate(container)):
            if isinstance(value, str):
                container[key] = restore(value)
            elif isinstance(value, (dict, list)):
                containers.append(value)
