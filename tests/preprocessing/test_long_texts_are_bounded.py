"""What a tokenizer reads at once has an end, and what is cut anyway is not read."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from infinity_emb.errors import BadInput
from infinity_emb.items import Pair, number_inputs
from infinity_emb.preprocessing.fast_tokenizer import FastTokenizer
from infinity_emb.preprocessing.slow_tokenizer import SlowTokenizer
from infinity_emb.preprocessing.tokens import MAX_CHARS_READ, Tokens
from infinity_emb.types import Truncation
from tests.support.small_tokenizers import load_fast_tokenizer

pytestmark = pytest.mark.model

LONG = "the fox " * (MAX_CHARS_READ // 4)
REFUSED = f"a text of {len(LONG)} characters would have to be read whole, the limit is {MAX_CHARS_READ}"


@pytest.fixture(scope="module")
def tokenizer() -> FastTokenizer:
    return load_fast_tokenizer("wordpiece")


@pytest.mark.parametrize(
    ("truncation", "max_tokens"), [("off", 256), ("left", 256), ("model", None), ("off", None)]
)
def test_a_text_that_would_be_read_whole_is_refused(
    truncation: Truncation, max_tokens: int | None, tokenizer: FastTokenizer
) -> None:
    """32 MiB of it took a tokenizer's thread for 20 seconds, and 3 GB."""
    with pytest.raises(BadInput, match=REFUSED):
        tokenizer(number_inputs(["the fox", LONG]), prompt="", truncation=truncation, max_tokens=max_tokens)
    with pytest.raises(BadInput, match=REFUSED):
        tokenizer(number_inputs([Pair("a", LONG)]), prompt="", truncation=truncation, max_tokens=max_tokens)


def test_so_is_one_that_is_to_be_split_or_counted(tokenizer: FastTokenizer) -> None:
    with pytest.raises(BadInput, match=REFUSED):
        tokenizer.split(LONG, prompt="", max_tokens=256)
    with pytest.raises(BadInput, match=REFUSED):
        tokenizer.encode_uncut(LONG)


def test_one_that_is_cut_at_its_end_may_have_any_length(tokenizer: FastTokenizer) -> None:
    for max_tokens in (256, 255, MAX_CHARS_READ):
        [whole] = tokenizer(
            number_inputs([LONG]), prompt="", truncation="model", max_tokens=min(max_tokens, 10_000)
        )
        assert len(whole.ids) == min(max_tokens, 10_000)
    for max_tokens in (256, 255):
        [pair] = tokenizer(
            number_inputs([Pair(LONG, LONG)]), prompt="", truncation="model", max_tokens=max_tokens
        )
        assert len(pair.ids) == max_tokens


def test_a_text_that_is_almost_nothing_is_refused_rather_than_read_to_its_end(
    tokenizer: FastTokenizer,
) -> None:
    """To find the tokens that a cut text would keep, ever more of it was read."""
    with pytest.raises(BadInput, match="would have to be read whole"):
        tokenizer(number_inputs([" " * 2 * MAX_CHARS_READ]), prompt="", truncation="model", max_tokens=256)


def test_a_long_text_is_split_in_time(tokenizer: FastTokenizer) -> None:
    """Each piece asked for the places of all tokens: a million characters took half a minute."""
    text = LONG[:MAX_CHARS_READ]
    pieces = tokenizer.split(text, prompt="", max_tokens=256)
    assert [pieces[0].start, pieces[-1].end] == [0, len(text)]
    assert sum(each.num_tokens for each in pieces) == len(tokenizer.encode_uncut(text).ids) - 2


def test_a_model_s_own_preprocessing_is_handed_no_longer_text_either() -> None:
    def encode(*_: object) -> Tokens:
        return Tokens(np.ones(3, dtype=np.int32))

    tokenize = SlowTokenizer(encode, truncation_side="right", lock=threading.Lock())
    assert len(tokenize(number_inputs(["the fox"]), prompt="", truncation="model", max_tokens=9)) == 1
    for given in (LONG, Pair("a", LONG)):
        with pytest.raises(BadInput, match=REFUSED):
            tokenize(number_inputs([given]), prompt="", truncation="model", max_tokens=9)
