"""Bodies are repaired in blocks, whose borders lie within no escape."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_emb.server.requests import json_text
from infinity_emb.server.requests.json_text import repair_json

PIECES = [
    r"\ud83d",
    r"\ude00",
    r"\uD83D\uDE00",
    r"\\",
    r"\"",
    r"\n",
    r"\u0061",
    "a",
    "ud83d",
    "é",
    "\U0001f600",
]
HALF = re.compile("[\ud800-\udfff]")


@given(pieces=st.lists(st.sampled_from(PIECES), max_size=30), size=st.integers(1, 40))
def test_blocks_of_any_size_are_repaired_like_the_whole(pieces: list[str], size: int) -> None:
    raw = '["' + "".join(pieces) + '"]'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "BLOCK_BYTES", size)
        repaired = repair_json(raw.encode())
    assert json.loads(repaired) == [HALF.sub("\ufffd", json.loads(raw)[0])]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_characters_may_lie_on_the_border_of_two_blocks(
    encoding: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_text, "BLOCK_BYTES", size)
    text = '{"a": "Größe 中文 \U0001f600\U0001f600"}'
    assert repair_json(text.encode(encoding)).decode() == text


@pytest.mark.parametrize("size", [1, 2, 3, 8, 100])
def test_the_place_of_an_invalid_byte_counts_from_the_beginning(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_text, "BLOCK_BYTES", size)
    raw = '{"a": "中文'.encode() + b"\xe4\xb8\xff"
    with pytest.raises(UnicodeDecodeError) as whole:
        raw.decode()
    with pytest.raises(UnicodeDecodeError) as caught:
        repair_json(raw)
    assert (caught.value.start, caught.value.reason) == (whole.value.start, whole.value.reason)


def test_the_number_of_replacements_is_that_of_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "BLOCK_BYTES", 10)
    monkeypatch.setattr(json_text, "MAX_REPLACEMENTS", 5)
    assert repair_json(rb"\ud83d " * 7) == rb"\ufffd " * 5 + rb"\ud83d " * 2
