"""What a tokenizer reads at once has an end, and what is cut anyway is not read."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from infinity_emb.backends.base import Pair
from infinity_emb.errors import BadInput
from infinity_emb.pipeline_tokenizing import PipelineTokenizer
from infinity_emb.primitives import Truncation
from infinity_emb.tokenizing import MAX_CHARS_READ, RawTokenizer, Tokens
from tests.test_tokenizing import raw

pytestmark = pytest.mark.model

LONG = "the fox " * (MAX_CHARS_READ // 4)
REFUSED = f"a text of {len(LONG)} characters would have to be read whole, the limit is {MAX_CHARS_READ}"


@pytest.fixture(scope="module")
def tokenizer() -> RawTokenizer:
    return raw("wordpiece")


@pytest.mark.parametrize(
    ("truncation", "max_tokens"), [("off", 256), ("left", 256), ("model", None), ("off", None)]
)
def test_a_text_that_would_be_read_whole_is_refused(
    truncation: Truncation, max_tokens: int | None, tokenizer: RawTokenizer
) -> None:
    """32 MiB of it took a tokenizer's thread for 20 seconds, and 3 GB."""
    with pytest.raises(BadInput, match=REFUSED):
        tokenizer(["the fox", LONG], prompt="", truncation=truncation, max_tokens=max_tokens)
    with pytest.raises(BadInput, match=REFUSED):
        tokenizer([Pair("a", LONG)], prompt="", truncation=truncation, max_tokens=max_tokens)


def test_so_is_one_that_is_to_be_split_or_counted(tokenizer: RawTokenizer) -> None:
    with pytest.raises(BadInput, match=REFUSED):
        tokenizer.split(LONG, prompt="", max_tokens=256)
    with pytest.raises(BadInput, match=REFUSED):
        tokenizer.encode_uncut(LONG)


def test_one_that_is_cut_at_its_end_may_have_any_length(tokenizer: RawTokenizer) -> None:
    for max_tokens in (256, 255, MAX_CHARS_READ):
        [whole] = tokenizer([LONG], prompt="", truncation="model", max_tokens=min(max_tokens, 10_000))
        assert len(whole.ids) == min(max_tokens, 10_000)
    for max_tokens in (256, 255):
        [pair] = tokenizer([Pair(LONG, LONG)], prompt="", truncation="model", max_tokens=max_tokens)
        assert len(pair.ids) == max_tokens


def test_a_text_that_is_almost_nothing_is_refused_rather_than_read_to_its_end(
    tokenizer: RawTokenizer,
) -> None:
    """To find the tokens that a cut text would keep, ever more of it was read."""
    with pytest.raises(BadInput, match="would have to be read whole"):
        tokenizer([" " * 2 * MAX_CHARS_READ], prompt="", truncation="model", max_tokens=256)


def test_a_long_text_is_split_in_time(tokenizer: RawTokenizer) -> None:
    """Each piece asked for the places of all tokens: a million characters took half a minute."""
    text = LONG[:MAX_CHARS_READ]
    pieces = tokenizer.split(text, prompt="", max_tokens=256)
    assert [pieces[0].start, pieces[-1].end] == [0, len(text)]
    assert sum(each.num_tokens for each in pieces) == len(tokenizer.encode_uncut(text).ids) - 2


def test_a_model_s_own_preprocessing_is_handed_no_longer_text_either() -> None:
    def encode(*_: object) -> Tokens:
        return Tokens(np.ones(3, dtype=np.int32))

    tokenize = PipelineTokenizer(encode, truncation_side="right", lock=threading.Lock())
    assert len(tokenize(["the fox"], prompt="", truncation="model", max_tokens=9)) == 1
    for given in (LONG, Pair("a", LONG)):
        with pytest.raises(BadInput, match=REFUSED):
            tokenize([given], prompt="", truncation="model", max_tokens=9)
