"""Each text that late chunking joined gets the tokens that begin in it."""

from __future__ import annotations

import pytest

from infinity_emb.backends.torch.late_chunking import find_token_spans
from infinity_emb.errors import BadInput

SPECIAL = (0, 0)


def test_each_text_has_the_tokens_that_begin_in_it() -> None:
    texts = ["one two ", "three"]
    offsets = [SPECIAL, (0, 3), (4, 7), (8, 13), SPECIAL]
    assert find_token_spans("".join(texts), offsets, texts, 0) == ((1, 3), (3, 4))


def test_a_token_that_includes_the_space_before_it_belongs_to_the_next_text() -> None:
    texts = ["one", " two"]
    assert find_token_spans("one two", [(0, 3), (3, 7)], texts, 0) == ((0, 1), (1, 2))
    texts = ["one ", "two"]
    assert find_token_spans("one two", [(0, 3), (3, 7)], texts, 0) == ((0, 1), (1, 2))


def test_a_token_across_two_texts_belongs_to_the_first() -> None:
    texts = ["un", "do it"]
    assert find_token_spans("undo it", [(0, 4), (5, 7)], texts, 0) == ((0, 1), (1, 2))


def test_tokens_of_the_prompt_belong_to_no_text() -> None:
    assert find_token_spans("query: one", [(0, 5), (5, 6), (7, 10)], ["one"], 0) == ((2, 3),)


def test_a_text_without_a_token_is_an_error_at_its_position() -> None:
    with pytest.raises(BadInput, match="has no token") as caught:
        find_token_spans("one  two", [(0, 3), (5, 8)], ["one", " ", " two"], 4)
    assert caught.value.position == 5
