"""The fast tokenizer gives the ids of transformers, whatever is cut."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infinity_emb.errors import BadInput, InputTooLong
from infinity_emb.items import Pair, number_inputs
from infinity_emb.preprocessing.fast_tokenizer import FastTokenizer
from infinity_emb.preprocessing.text_truncation import CHARS_PER_TOKEN
from infinity_emb.types import Truncation
from tests.support.small_tokenizers import (
    KINDS,
    MEGABYTES,
    TEXTS,
    CharCounter,
    each_kind,
    encode_ids,
    encode_pair,
    expected_ids,
    expected_pair,
    load_fast_tokenizer,
    load_reference,
    model,
    unhurried,
)


@model
@each_kind
@settings(unhurried, max_examples=35)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3), max_tokens=st.sampled_from([4, 8, 31]))
def test_ids_are_those_of_transformers(kind: str, texts: list[str], max_tokens: int) -> None:
    assert encode_ids(load_fast_tokenizer(kind), texts, max_tokens=max_tokens) == expected_ids(
        kind, texts, max_tokens
    )


@model
@each_kind
@settings(unhurried, max_examples=20)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_the_side_that_is_cut_is_the_model_s_unless_another_is_asked_for(kind: str, texts: list[str]) -> None:
    left, right = (expected_ids(kind, texts, 8, side=side) for side in ("left", "right"))
    cuts_left = load_fast_tokenizer(kind, truncation_side="left")

    assert encode_ids(cuts_left, texts, max_tokens=8) == left
    assert encode_ids(cuts_left, texts, max_tokens=8, truncation="right") == right
    assert encode_ids(load_fast_tokenizer(kind), texts, max_tokens=8, truncation="left") == left


@model
@unhurried
@given(num_chars=st.integers(0, 600), text=st.sampled_from(["a", ".", "-=", "aab", " "]))
@example(num_chars=137, text="a")
def test_a_run_that_unigram_splits_from_its_end_is_not_cut(num_chars: int, text: str) -> None:
    """The odd piece of a run of equal characters stands at its front: a cut far behind moved every token."""
    text = (text * num_chars)[:num_chars]
    assert encode_ids(load_fast_tokenizer("unigram"), [text], max_tokens=8) == expected_ids(
        "unigram", [text], 8
    )


@model
def test_a_cut_does_not_make_a_word_short_enough_for_wordpiece() -> None:
    """WordPiece has one token for a word of over 100 characters; its first 99 are up to 99 tokens, as many as
    were taken for a safe distance between the kept tokens and the cut."""
    max_tokens = 256
    beginning = "." * 64 + "the." * 39 + "." * 3 + ("a" * 101 + "-") * 37
    assert len(beginning) + 99 == max_tokens * CHARS_PER_TOKEN
    text = beginning + "qzxj" * 200

    assert encode_ids(load_fast_tokenizer("wordpiece"), [text], max_tokens=max_tokens) == expected_ids(
        "wordpiece", [text], 256
    )


@model
@pytest.mark.parametrize("name", MEGABYTES)
def test_a_megabyte_has_the_ids_of_transformers(name: str) -> None:
    text = MEGABYTES[name]
    assert encode_ids(load_fast_tokenizer("wordpiece"), [text], max_tokens=256) == expected_ids(
        "wordpiece", [text], 256
    )


@model
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("name", MEGABYTES)
def test_a_long_text_has_the_ids_of_transformers(kind: str, name: str) -> None:
    texts = ["short", MEGABYTES[name][:20_001], "", MEGABYTES[name][:30_000]]
    assert encode_ids(load_fast_tokenizer(kind), texts, max_tokens=32) == expected_ids(kind, texts, 32)


@model
@pytest.mark.parametrize(
    ("kind", "name"),
    [("wordpiece", "words"), ("wordpiece", "CJK"), ("byte-level bpe", "words"), ("unigram", "words")],
)
def test_of_a_megabyte_only_a_fraction_is_tokenized(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = CharCounter(monkeypatch)
    load_fast_tokenizer(kind)(number_inputs([MEGABYTES[name]]), prompt="", truncation="model", max_tokens=256)
    assert 0 < counter.num_chars <= 256 * CHARS_PER_TOKEN


@model
@each_kind
def test_a_text_that_may_not_be_cut_is_refused_with_its_count_and_the_limit(kind: str) -> None:
    texts = ["the fox", "the quick brown fox " * 50]
    num_tokens = len(load_reference(kind)(texts[1])["input_ids"])

    with pytest.raises(InputTooLong, match=rf"^input 1 has {num_tokens} tokens, the limit is 12;"):
        encode_ids(load_fast_tokenizer(kind), texts, max_tokens=12, truncation="off")


@model
@each_kind
def test_a_text_of_exactly_the_limit_is_not_too_long(kind: str) -> None:
    text = "the quick brown fox"
    whole = load_reference(kind)(text)["input_ids"]

    assert encode_ids(load_fast_tokenizer(kind), [text], max_tokens=len(whole), truncation="off") == [whole]
    with pytest.raises(InputTooLong):
        encode_ids(load_fast_tokenizer(kind), [text], max_tokens=len(whole) - 1, truncation="off")


@model
@each_kind
@pytest.mark.parametrize("truncation", ["model", "left", "right", "off"])
def test_without_a_limit_nothing_is_cut(kind: str, truncation: Truncation) -> None:
    text = "the quick brown fox " * 2000
    whole = load_reference(kind)(text)["input_ids"]
    assert encode_ids(load_fast_tokenizer(kind), ["cut"], max_tokens=3) != [whole], (
        "a limit of before is forgotten"
    )
    assert encode_ids(load_fast_tokenizer(kind), [text], max_tokens=None, truncation=truncation) == [whole]


@model
@each_kind
@pytest.mark.parametrize("max_tokens", [None, 6])
def test_the_prompt_stands_before_every_text_and_counts(kind: str, max_tokens: int | None) -> None:
    texts = ["fox", "", "the quick brown fox " * 100]

    assert encode_ids(
        load_fast_tokenizer(kind), texts, prompt="query: ", max_tokens=max_tokens
    ) == expected_ids(kind, [f"query: {text}" for text in texts], max_tokens or 10**6)


@model
@each_kind
@pytest.mark.parametrize("text", ["\ud800", "a \udfff b", "the fox " * 1000 + "\ud83d", "\ud800" * 5000])
@pytest.mark.parametrize("max_tokens", [None, 100_000])
@pytest.mark.parametrize("truncation", ["model", "off"])
def test_a_lone_surrogate_is_bad_input(
    kind: str, text: str, max_tokens: int | None, truncation: Truncation
) -> None:
    tokenize = load_fast_tokenizer(kind)
    for inputs in (["fine", text], [Pair("fine", text)], [Pair(text, "fine")]):
        with pytest.raises(BadInput, match="lone surrogates"):
            tokenize(number_inputs(inputs), prompt="", truncation=truncation, max_tokens=max_tokens)
    with pytest.raises(BadInput, match="lone surrogates"):
        tokenize.split(text, prompt="", max_tokens=100)
    with pytest.raises(BadInput, match="lone surrogates"):
        tokenize.encode_uncut(text)


@model
def test_the_tokenizer_that_was_given_is_left_as_it_is() -> None:
    tokenizer = load_reference("byte-level bpe").backend_tokenizer
    before = tokenizer.to_str()
    encode_ids(load_fast_tokenizer("byte-level bpe"), ["the quick brown fox"], max_tokens=5)
    assert tokenizer.to_str() == before


@model
@each_kind
def test_eight_threads_get_the_ids_that_one_gets(kind: str) -> None:
    """Each with limits and prompts of its own, and with pairs and pieces in between."""
    tokenize = load_fast_tokenizer(kind)
    batches = [[f"the fox {number} " * (number % 40), f"dog {number}"] for number in range(100)]

    def limit_of(number: int) -> int:
        return 8 + number % 3 * 4

    expected = [expected_ids(kind, texts, limit_of(number)) for number, texts in enumerate(batches)]
    pairs = [expected_pair(kind, Pair(*texts), limit_of(number))[0] for number, texts in enumerate(batches)]
    all_start = threading.Barrier(8)

    def work(_: int) -> tuple[list[list[list[int]]], list[list[int]]]:
        all_start.wait(30)
        found, found_pairs = [], []
        for number, texts in enumerate(batches):
            found.append(encode_ids(tokenize, texts, max_tokens=limit_of(number)))
            tokenize.split(texts[0], prompt="", max_tokens=30)
            found_pairs.append(encode_pair(tokenize, Pair(*texts), limit_of(number))[0])
        return found, found_pairs

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(8))) == [(expected, pairs)] * 8


@model
def test_ids_are_int32_arrays() -> None:
    tokens = load_fast_tokenizer("wordpiece")(
        number_inputs(["a", "b"]), prompt="", truncation="model", max_tokens=16
    )
    assert [each.ids.dtype for each in tokens] == [np.int32, np.int32]
    [pair] = load_fast_tokenizer("wordpiece")(
        number_inputs([Pair("a", "b")]), prompt="", truncation="model", max_tokens=16
    )
    assert pair.type_ids is not None
    assert (pair.ids.dtype, pair.type_ids.dtype) == (np.int32, np.int32)


@model
def test_a_text_without_a_token_is_bad_input_unless_the_model_takes_it() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    bare = Tokenizer(BPE(vocab={"a": 0}, merges=[]))
    assert encode_ids(FastTokenizer(bare), ["aa"], max_tokens=5) == [[0, 0]]
    with pytest.raises(BadInput, match=r"^input 1 has no token"):
        encode_ids(FastTokenizer(bare), ["a", ""], max_tokens=5)
    with pytest.raises(BadInput, match=r"^input 1 has no token"):
        FastTokenizer(bare)(
            number_inputs([Pair("a", ""), Pair("", "")]), prompt="", truncation="model", max_tokens=5
        )
    assert encode_ids(FastTokenizer(bare, allows_empty=True), ["a", ""], max_tokens=5) == [[0], []]


@model
@each_kind
def test_special_tokens_can_be_left_out(kind: str) -> None:
    texts = ["the quick brown fox", "dog"]
    expected = [load_reference(kind)(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert (
        encode_ids(load_fast_tokenizer(kind, adds_special_tokens=False), texts, max_tokens=None) == expected
    )
