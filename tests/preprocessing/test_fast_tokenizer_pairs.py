"""The fast tokenizer gives the pairs of transformers, without its memory use."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infinity_emb.errors import InputTooLong
from infinity_emb.items import Pair, number_inputs
from infinity_emb.preprocessing.text_truncation import CHARS_PER_TOKEN
from infinity_emb.types import Truncation
from tests.support.small_tokenizers import (
    MEGABYTES,
    TEXTS,
    CharCounter,
    each_kind,
    encode_pair,
    expected_pair,
    load_fast_tokenizer,
    load_reference,
    model,
    to_lists,
    unhurried,
)

# Shorter than single texts: of two long ones transformers keeps every combination of what it cuts off.
PAIRS = st.tuples(TEXTS, TEXTS).map(lambda texts: Pair(texts[0][:300], texts[1][:900]))


@model
@each_kind
@settings(unhurried, max_examples=30)
@given(pairs=st.lists(PAIRS, min_size=1, max_size=3), max_tokens=st.sampled_from([9, 30, 31, None]))
@example(pairs=[Pair("", ""), Pair("", "dog"), Pair("fox", "")], max_tokens=8)
@example(pairs=[Pair("the fox " * 90, "the dog " * 70)], max_tokens=9)
@example(pairs=[Pair("the fox " * 70, "the dog " * 90)], max_tokens=9)
@example(pairs=[Pair("the fox " * 900, "the dog " * 70)], max_tokens=30)
def test_pairs_are_those_of_transformers(kind: str, pairs: list[Pair], max_tokens: int | None) -> None:
    tokens = load_fast_tokenizer(kind)(
        number_inputs(pairs), prompt="", truncation="model", max_tokens=max_tokens
    )
    assert to_lists(tokens) == [expected_pair(kind, pair, max_tokens) for pair in pairs]


@model
@each_kind
@settings(unhurried, max_examples=25)
@given(
    words=st.tuples(st.integers(0, 120), st.integers(0, 120)),
    max_tokens=st.integers(8, 24),
    unit=st.sampled_from(["the fox, ", "日本語", "a", "qzxj😀 "]),
)
@example(words=(100, 101), max_tokens=8, unit="the fox, ")
@example(words=(101, 100), max_tokens=8, unit="the fox, ")
def test_of_two_long_texts_the_longer_is_cut_first(
    kind: str, words: tuple[int, int], max_tokens: int, unit: str
) -> None:
    """With an odd number of places the longer text has one more: texts that were both cut before they were
    tokenized could change sides."""
    pair = Pair(unit * words[0], unit * words[1])
    assert encode_pair(load_fast_tokenizer(kind), pair, max_tokens) == expected_pair(kind, pair, max_tokens)


@model
@each_kind
@settings(unhurried, max_examples=15)
@given(pair=PAIRS, max_tokens=st.sampled_from([8, 9, 31]))
def test_pairs_are_cut_on_the_side_that_is_asked_for(kind: str, pair: Pair, max_tokens: int) -> None:
    left, right = (expected_pair(kind, pair, max_tokens, side=side) for side in ("left", "right"))
    cuts_left = load_fast_tokenizer(kind, truncation_side="left")

    assert encode_pair(cuts_left, pair, max_tokens) == left
    assert encode_pair(cuts_left, pair, max_tokens, "right") == right
    assert encode_pair(load_fast_tokenizer(kind), pair, max_tokens, "left") == left


@model
@each_kind
def test_the_prompt_stands_before_every_query(kind: str) -> None:
    pairs = [Pair("fox", "dog"), Pair("", "the dog " * 40), Pair("fox", "")]
    tokens = load_fast_tokenizer(kind)(
        number_inputs(pairs), prompt="judge: ", truncation="model", max_tokens=16
    )
    assert to_lists(tokens) == [
        expected_pair(kind, Pair(f"judge: {query}", document), 16) for query, document in pairs
    ]


@model
@each_kind
def test_a_pair_that_may_not_be_cut_is_refused_with_its_count_and_the_limit(kind: str) -> None:
    pairs = [Pair("fox", "dog"), Pair("the fox " * 30, "the dog " * 20)]
    num_tokens = len(expected_pair(kind, pairs[1], None)[0])

    tokens = load_fast_tokenizer(kind)(
        number_inputs(pairs), prompt="", truncation="off", max_tokens=num_tokens
    )
    assert to_lists(tokens) == [expected_pair(kind, pair, None) for pair in pairs]
    with pytest.raises(
        InputTooLong, match=rf"^input 1 has {num_tokens} tokens, the limit is {num_tokens - 1};"
    ):
        load_fast_tokenizer(kind)(
            number_inputs(pairs), prompt="", truncation="off", max_tokens=num_tokens - 1
        )


@model
def test_the_count_of_a_refused_pair_is_that_of_the_whole_texts() -> None:
    """Texts far over the limit are cut before they are tokenized, where they may be cut at all."""
    pair = Pair("the fox " * 5000, "the dog " * 4000)
    num_tokens = len(expected_pair("wordpiece", pair, None)[0])
    with pytest.raises(InputTooLong, match=f"has {num_tokens} tokens, the limit is 20"):
        encode_pair(load_fast_tokenizer("wordpiece"), pair, 20, "off")


@model
@pytest.mark.parametrize("name", MEGABYTES)
def test_a_pair_of_a_megabyte_has_the_ids_of_transformers(name: str) -> None:
    for pair in (Pair("the fox", MEGABYTES[name]), Pair(MEGABYTES[name], "the fox")):
        assert encode_pair(load_fast_tokenizer("wordpiece"), pair, 256) == expected_pair(
            "wordpiece", pair, 256
        )


@model
@pytest.mark.parametrize("truncation", ["left", "right"])
def test_two_long_texts_do_not_fill_the_memory(truncation: Truncation) -> None:
    """The library keeps every combination of what it cuts off: these would be millions of encodings."""
    num_words = 20_000
    pair = Pair("fox " * num_words, "dog " * num_words)
    fox, dog = (
        load_reference("wordpiece")(word, add_special_tokens=False)["input_ids"][0] for word in ("fox", "dog")
    )
    ids, type_ids = encode_pair(load_fast_tokenizer("wordpiece"), pair, 24, truncation)
    assert (ids[1:-1].count(fox), ids.count(dog), sum(type_ids)) == (10, 11, 12)


@model
def test_a_query_is_tokenized_once_and_of_a_long_document_only_a_fraction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counter = CharCounter(monkeypatch)
    query = "the quick brown fox " * 10
    pairs = [Pair(query, MEGABYTES["words"]), Pair(query, "dog"), Pair(query, "fox")]
    load_fast_tokenizer("wordpiece")(number_inputs(pairs), prompt="p: ", truncation="model", max_tokens=256)
    assert counter.num_chars <= len("p: ") + len(query) + 256 * CHARS_PER_TOKEN + len("dogfox")
