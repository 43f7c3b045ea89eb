"""Long texts are parsed in blocks, as they would be at once."""

from __future__ import annotations

import json
import sys
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_emb.server.requests import json_long_texts
from infinity_emb.server.requests.json_long_texts import parse_document
from infinity_emb.server.requests.json_text import BLOCK_BYTES

texts = st.text(alphabet='\\"[{:,aaaaé中\U0001f600\n ', max_size=60)
values = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(params=[1, 2, 3, 7, 16])
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_long_texts, "BLOCK_BYTES", request.param)
    monkeypatch.setattr(json_long_texts, "_MIN_RUN_BLOCKS", 1)


@given(value=values, size=st.integers(1, 20), num_blocks=st.integers(1, 4), is_ascii=st.booleans())
def test_documents_are_parsed_as_at_once(value: Any, size: int, num_blocks: int, is_ascii: bool) -> None:
    raw = json.dumps(value, ensure_ascii=is_ascii).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_long_texts, "BLOCK_BYTES", size)
        patch.setattr(json_long_texts, "_MIN_RUN_BLOCKS", num_blocks)
        assert parse_document(raw) == value


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": %b 1}' % (b" " * 50),
        b'{"a": %b}' % (b"9" * 50),
        b"%b[1]" % (b" " * 50),
        b'["a"]%b' % (b" " * 50),
        rb'["\\\\\\\\\\\\\\\\\\\\\\\\", "\"\\\"aaaaaaaaaaaaaaaaaaaaaaaa\\"]',
        rb'["aaaaaaaaaaaaaaaaaa\ud83d\ude00\u0061aaaaaaaaaaaaaaa\"aaaaaaaaaaaaaaaaaaaaa"]',
        b'{"%b": "%b", "%b": 2}' % (b"k" * 40, b"v" * 40, b"l" * 40),
    ],
)
def test_runs_outside_of_texts_and_escapes_at_their_ends_change_nothing(raw: bytes) -> None:
    assert parse_document(raw) == orjson.loads(raw)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    "raw",
    [
        b'["%b' % (b"a" * 50),
        b'["%b"] x' % (b"a" * 50),
        b'["%b\n%b"]' % (b"a" * 30, b"a" * 30),
        b'["%b\xff%b"]' % (b"a" * 30, b"a" * 30),
        b'["%b"]' % (b"\x80" * 60),
        rb'["%b\x%b"]' % (b"a" * 30, b"a" * 30),
        rb'["%b\ud83d%b"]' % (b"a" * 30, b"a" * 30),
    ],
)
def test_an_error_is_that_of_the_whole_document(raw: bytes) -> None:
    with pytest.raises(orjson.JSONDecodeError) as whole:
        orjson.loads(raw)
    with pytest.raises(orjson.JSONDecodeError) as caught:
        parse_document(raw)
    assert (str(caught.value), caught.value.pos) == (str(whole.value), whole.value.pos)


def test_no_call_of_the_parser_gets_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of 31 MB held the interpreter lock for a tenth of a second."""
    sizes: list[int] = []

    def load(raw: bytes) -> Any:
        sizes.append(len(raw))
        return loads(raw)

    loads = orjson.loads
    monkeypatch.setattr(orjson, "loads", load)
    text = "a\U0001f600" + "é\\\n" * 2**21
    raw = json.dumps({"input": [text, "short"], "user": "中" * 2**19}, ensure_ascii=False).encode()
    assert parse_document(raw) == {"input": [text, "short"], "user": "中" * 2**19}
    assert max(sizes) <= BLOCK_BYTES + 20
    assert sys.getsizeof(text) > 8 * 2**20
