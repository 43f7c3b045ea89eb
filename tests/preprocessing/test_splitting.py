"""Pieces of a text cover it in order and fit the limit; offsets are those of transformers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infinity_emb.errors import BadInput
from tests.support.small_tokenizers import (
    TEXTS,
    each_kind,
    load_fast_tokenizer,
    load_reference,
    model,
    unhurried,
)


@model
@each_kind
@settings(unhurried, max_examples=60)
@given(
    text=TEXTS.map(lambda text: text[:1000]),
    max_tokens=st.sampled_from([16, 20, 47]),
    prompt=st.sampled_from(["", "query: "]),
    is_alone=st.booleans(),
)
@example(text="", max_tokens=16, prompt="", is_alone=True)
@example(text="😀" * 400, max_tokens=16, prompt="", is_alone=True)
def test_pieces_cover_the_text_in_order_and_fit_the_limit(
    kind: str, text: str, max_tokens: int, prompt: str, is_alone: bool
) -> None:
    tokenize = load_fast_tokenizer(kind)
    pieces = tokenize.split(text, prompt=prompt, max_tokens=max_tokens, is_alone=is_alone)

    assert "".join(text[piece.start : piece.end] for piece in pieces) == text
    whole = load_reference(kind)(text, add_special_tokens=False)["input_ids"]
    assert sum(piece.num_tokens for piece in pieces) == len(whole)
    if not is_alone:
        assert all(piece.num_tokens <= max_tokens for piece in pieces)
        return
    for piece in pieces if len(pieces) > 1 else []:
        alone = load_reference(kind)(prompt + text[piece.start : piece.end])["input_ids"]
        assert len(alone) <= max_tokens, "a piece is cut: some of the text is read by nobody"


@model
@each_kind
def test_a_text_that_fits_is_one_piece_and_words_stay_whole(kind: str) -> None:
    text = "the quick brown fox jumps over the lazy dog " * 20
    whole = load_reference(kind)(text)["input_ids"]

    assert len(load_fast_tokenizer(kind).split(text, prompt="", max_tokens=len(whole))) == 1
    pieces = load_fast_tokenizer(kind).split(text, prompt="", max_tokens=40)
    assert len(pieces) > 1
    if kind != "unigram in one word":
        cuts = [piece.start for piece in pieces[1:]]
        assert all(" " in text[cut - 1 : cut + 1] for cut in cuts)


@model
@each_kind
def test_pieces_are_not_smaller_than_they_must_be(kind: str) -> None:
    """No two neighbours would fit together: each piece costs a forward pass of its own."""
    text = "the quick brown fox jumps over the lazy dog, " * 30
    pieces = load_fast_tokenizer(kind).split(text, prompt="", max_tokens=40)
    for first, second in itertools.pairwise(pieces):
        together = load_reference(kind)(text[first.start : second.end])["input_ids"]
        assert len(together) > 40


@model
@each_kind
def test_a_prompt_that_leaves_no_room_is_refused(kind: str) -> None:
    with pytest.raises(BadInput, match="no room for a text"):
        load_fast_tokenizer(kind).split("the fox", prompt="the quick brown fox " * 20, max_tokens=30)


@model
@each_kind
@pytest.mark.parametrize("text", ["", "the fox, 日本語 😀", "  two  spaces\n", "e\u0301 ﬁ"])
def test_offsets_are_those_of_transformers(kind: str, text: str) -> None:
    tokenizer = load_reference(kind)
    encoded = tokenizer(text, return_offsets_mapping=True)
    encoding = load_fast_tokenizer(kind).encode_uncut(text)

    assert encoding.offsets == [tuple(each) for each in encoded["offset_mapping"]]
    assert encoding.ids == encoded["input_ids"]
