"""A model's own preprocessing as a tokenizer: one input and one thread at a time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from infinity_emb.errors import BadInput, InputTooLong
from infinity_emb.items import Pair, number_inputs
from infinity_emb.preprocessing.slow_tokenizer import SlowTokenizer
from infinity_emb.preprocessing.tokens import Tokens
from tests.support.small_tokenizers import encode_ids, to_lists


def first_letters(each: str | Pair, prompt: str) -> Tokens:
    text = prompt + (each if isinstance(each, str) else "|".join(each))
    ids = np.array([ord(char) for char in text[:5]], dtype=np.int32)
    return Tokens(ids, None if isinstance(each, str) else ids % 2)


def make_slow_tokenizer(encode: Any = first_letters) -> SlowTokenizer:
    return SlowTokenizer(encode, truncation_side="right", lock=threading.Lock())


def test_the_pipeline_tokenizes_input_by_input() -> None:
    assert encode_ids(make_slow_tokenizer(), ["ab", "abcdefgh"], max_tokens=5, prompt="_") == [
        [95, 97, 98],
        [95, 97, 98, 99, 100],
    ]
    tokens = make_slow_tokenizer()(
        number_inputs([Pair("a", "b")]), prompt="", truncation="model", max_tokens=5
    )
    assert to_lists(tokens) == [([97, 124, 98], [1, 0, 0])]
    assert make_slow_tokenizer()(number_inputs([]), prompt="", truncation="off", max_tokens=5) == []


def test_where_the_pipeline_may_not_cut_a_text_that_fills_the_limit_is_refused() -> None:
    assert len(encode_ids(make_slow_tokenizer(), ["abcd"], max_tokens=5, truncation="off")[0]) == 4
    with pytest.raises(InputTooLong, match=r"^input 1 fills or exceeds the limit of 5 tokens"):
        encode_ids(make_slow_tokenizer(), ["a", "abcde"], max_tokens=5, truncation="off")
    assert len(encode_ids(make_slow_tokenizer(), ["abcdefgh"], max_tokens=None, truncation="off")[0]) == 5


def test_the_pipeline_cuts_at_the_limit_of_its_model_alone() -> None:
    assert len(encode_ids(make_slow_tokenizer(), ["abc"], max_tokens=3)[0]) == 3
    with pytest.raises(BadInput, match=r"^input 1 has 4 tokens, but .* cannot cut it at 3;"):
        encode_ids(make_slow_tokenizer(), ["a", "abcd"], max_tokens=3)


def test_the_pipeline_cuts_on_the_side_of_its_model_alone() -> None:
    assert len(encode_ids(make_slow_tokenizer(), ["abcdefgh"], max_tokens=5, truncation="right")[0]) == 5
    with pytest.raises(BadInput, match="cut on the right only, not on the left"):
        encode_ids(make_slow_tokenizer(), ["a"], max_tokens=5, truncation="left")


def test_a_text_to_which_the_pipeline_gives_no_token_is_bad_input() -> None:
    with pytest.raises(BadInput, match=r"^input 1 has no token"):
        encode_ids(make_slow_tokenizer(), ["a", ""], max_tokens=5)


def test_the_pipeline_is_used_by_one_thread_at_a_time() -> None:
    is_in_use = threading.Lock()
    num_collisions = 0

    def encode(text: str, prompt: str) -> Tokens:
        nonlocal num_collisions
        if not is_in_use.acquire(blocking=False):
            num_collisions += 1
            return Tokens(np.zeros(1, dtype=np.int32))
        with ThreadPoolExecutor(1) as other:  # lets other threads come by
            other.submit(int).result()
        is_in_use.release()
        return Tokens(np.array([len(text)], dtype=np.int32))

    tokenize = make_slow_tokenizer(encode)
    with ThreadPoolExecutor(4) as threads:
        answers = list(
            threads.map(lambda n: encode_ids(tokenize, ["x" * n], max_tokens=None)[0], range(1, 40))
        )
    assert num_collisions == 0
    assert answers == [[number] for number in range(1, 40)]
