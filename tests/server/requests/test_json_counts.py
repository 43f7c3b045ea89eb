"""Documents are counted in blocks; what lies on the border of two of them counts as elsewhere."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from infinity_emb.server.requests import json_counts
from infinity_emb.server.requests.json_counts import Counts, check_counts, check_width, is_quick
from infinity_emb.server.requests.json_text import BLOCK_BYTES, repair_json

values = st.recursive(
    st.none() | st.integers() | st.text(alphabet='\\"[{:,a\U0001f600', max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


def count(value: Any) -> Counts:
    """Count what `json_counts` limits: containers, fields, texts, and the commas between values."""
    if isinstance(value, dict):
        below = [count(each) for each in value.values()]
        own = Counts(1, len(value), len(value), max(0, len(value) - 1))
    elif isinstance(value, list):
        below, own = [count(each) for each in value], Counts(1, 0, 0, max(0, len(value) - 1))
    else:
        below, own = [], Counts(0, 0, int(isinstance(value, str)), 0)
    return Counts(*map(sum, zip(own, *below, strict=True)))


@given(value=values, size=st.integers(1, 20), is_ascii=st.booleans())
def test_blocks_of_any_size_are_counted_like_the_whole(value: Any, size: int, is_ascii: bool) -> None:
    raw = json.dumps(value, ensure_ascii=is_ascii, separators=(",", ":")).encode()
    expected = count(value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_counts, "BLOCK_BYTES", size)
        assert json_counts._count_outside_strings(raw) == expected
        for name in Counts._fields:
            limits = expected._replace(**{name: getattr(expected, name) - 1})
            patch.setattr(json_counts, "MAX_COUNTS", expected)
            check_counts(raw)
            patch.setattr(json_counts, "MAX_COUNTS", limits)
            with pytest.raises(RequestValidationError):
                check_counts(raw)


@pytest.mark.parametrize("size", [4, 5, 7, 100])
@pytest.mark.parametrize("place", range(12))
@pytest.mark.parametrize("text", ["\U0001f600", r"\ud83d\ude00", r"\uD83D\uDE00"])
def test_wide_characters_are_found_across_the_border_of_blocks(
    text: str, place: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_counts, "BLOCK_BYTES", size)
    monkeypatch.setattr(json_counts, "MAX_WIDE_BYTES", 10)
    filler = "a" * place
    check_width(f'{{"a": "{filler}\u4e2d\\u4e2d\\ud55c{filler}"}}'.encode())
    with pytest.raises(HTTPException) as caught:
        check_width(f'{{"a": "{filler}{text}{filler}"}}'.encode())
    assert caught.value.status_code == 413


LARGE = 12 * 2**20
DOCUMENTS = {
    "a text": b'{"a": "' + b"a" * LARGE + b'"}',
    "quotes": b'{"a": ["' + b',""' * (LARGE // 3) + b'"]}',
    "escapes": b'{"a": "' + rb"\u0061" * (LARGE // 6) + b'"}',
    "half a pair": b'{"a": "' + rb"\u0061" * (LARGE // 6) + rb"\ud83d" + b'"}',
    "escaped backslashes": b'{"a": "' + rb"\\" * (LARGE // 2) + rb"\ud83d" + b'"}',
    "another encoding": ('{"a": "' + "a" * (LARGE // 4) + '"}').encode("utf-32"),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_large_document_is_checked_in_many_steps(name: str) -> None:
    """A search in 31 MB held the interpreter lock for up to half a second, and the event loop waited."""
    assert count_steps(lambda: check(DOCUMENTS[name])) >= 3 * LARGE // BLOCK_BYTES


def check(raw: bytes) -> None:
    """Do what is done with a large body before orjson accepts it."""
    with contextlib.suppress(RequestValidationError):
        check_counts(raw)
        json_counts._has_wide_characters(np.frombuffer(raw, dtype=np.uint8))
        check_counts(repair_json(raw))


def count_steps(work: Callable[[], object]) -> int:
    """Count the lines that are executed: between two, another thread can get the interpreter lock."""
    num_steps = 0

    def trace(_: object, event: str, __: object) -> Any:
        nonlocal num_steps
        num_steps += event == "line"
        return trace

    tracer = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(tracer)
    return num_steps


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"{}", True),
        (b'{"a": "%b"}' % (b"a" * 10**6), True),
        (b"[" * 5000, False),
        (b",1" * 50_000, False),
        (b'"' * 50_000, False),
        (b"", True),
    ],
)
def test_a_document_of_few_parts_is_quick_to_parse(raw: bytes, expected: bool) -> None:
    assert is_quick(raw) is expected
