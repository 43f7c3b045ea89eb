from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from tokenizers import Tokenizer

from infinity_emb.errors import BadInput
from infinity_emb.preprocessing.vocabulary import FastVocabulary, Token
from tests.support.small_tokenizers import (
    KINDS,
    TEXTS,
    each_kind,
    encode_ids,
    load_fast_tokenizer,
    load_reference,
    unhurried,
)

pytestmark = pytest.mark.model


def vocabulary(kind: str) -> FastVocabulary:
    return FastVocabulary(load_fast_tokenizer(kind))


@each_kind
@settings(unhurried, max_examples=25)
@given(text=TEXTS)
def test_tokens_are_those_of_the_tokenizers_library(kind: str, text: str) -> None:
    tokenizer = Tokenizer.from_str(load_reference(kind).backend_tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for add_special_tokens in (True, False):
        expected = tokenizer.encode(text, add_special_tokens=add_special_tokens)
        tokens = vocabulary(kind).tokenize(text, add_special_tokens=add_special_tokens)
        assert [each.id for each in tokens] == expected.ids
        assert [each.is_special for each in tokens] == [bool(each) for each in expected.special_tokens_mask]
        for token, span, name in zip(tokens, expected.offsets, expected.tokens, strict=True):
            if token.is_special:
                assert (token.text, token.span) == (name, None)
            else:
                assert (token.text, token.span) == (text[span[0] : span[1]], span)


def test_a_token_stands_for_its_part_of_the_text() -> None:
    tokens = vocabulary("wordpiece").tokenize("Naïve, [SEP]!")
    assert tokens[0] == Token(101, "[CLS]", True, None)
    assert tokens[-1] == Token(102, "[SEP]", True, None)
    own = tokens[1:-1]
    assert [each.text for each in own] == ["Naïve", ",", "[SEP]", "!"]
    assert [each.span for each in own] == [(0, 5), (5, 6), (7, 12), (12, 13)]
    assert not any(each.is_special for each in own)  # one that a user spells is a part of the text


@each_kind
def test_ids_are_decoded_as_transformers_decodes_them(kind: str) -> None:
    tokenizer = load_reference(kind)
    texts = ["the quick brown fox", "日本 and 😀", "  two  spaces", ""]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        for skip in (True, False):
            expected = tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert vocabulary(kind).decode(ids, skip_special_tokens=skip) == expected


@each_kind
def test_the_size_is_one_more_than_the_largest_id(kind: str) -> None:
    largest = max(load_reference(kind).get_vocab().values())
    assert vocabulary(kind).size == largest + 1
    assert FastVocabulary(load_fast_tokenizer(kind), num_embeddings=7).size == 7
    assert FastVocabulary(load_fast_tokenizer(kind), num_embeddings=10**6).size == largest + 1


def test_a_text_that_was_cut_before_is_whole_here_and_the_other_way_round() -> None:
    text = "rivers " * 50
    assert len(encode_ids(load_fast_tokenizer("wordpiece"), [text], max_tokens=8)[0]) == 8
    assert len(vocabulary("wordpiece").tokenize(text)) == 52
    assert len(encode_ids(load_fast_tokenizer("wordpiece"), [text], max_tokens=8)[0]) == 8


def test_a_static_models_texts_get_no_special_tokens() -> None:
    static = FastVocabulary(load_fast_tokenizer("wordpiece", adds_special_tokens=False))
    assert [each.text for each in static.tokenize("rivers")] == ["rivers"]


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(BadInput, match="not valid Unicode"):
        vocabulary("wordpiece").tokenize("\ud800")


def test_many_threads_may_ask_at_once() -> None:
    texts = [f"the quick brown fox {number} jumps" for number in range(64)]
    for kind in KINDS[:2]:
        asked = vocabulary(kind)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(asked.tokenize, texts)) == [asked.tokenize(text) for text in texts]
