"""Tokenizing and decoding by the engine, on the fake model, whose tokens are characters."""

from __future__ import annotations

from typing import Any

import pytest

from infinity_emb.backends import fake
from infinity_emb.engine.results import EmbedOptions
from infinity_emb.engine.tokens import MAX_DECODED_IDS, MAX_TOKENIZED_CHARS
from infinity_emb.errors import BadInput, EngineNotReady, ModelNotDeployedError, Overloaded
from infinity_emb.preprocessing.vocabulary import Token
from infinity_emb.types import Modality
from tests.support.event_loop import run
from tests.support.fake_engines import call, fake_engine

LONG = "x" * (fake.MAX_TOKENS + 1)


def test_texts_are_tokenized_with_their_prompt_and_never_cut() -> None:
    engine = fake_engine("kind=embedder")
    (short, long) = call(engine, "tokenizer.tokenize", ["ab", LONG], prompt_name="query")
    assert short.text == "query: ab"
    assert short.tokens[-1] == Token(ord("b"), "b", False, (8, 9))
    assert len(long.tokens) == len("query: ") + len(LONG)


def test_ids_are_decoded_in_order() -> None:
    assert call(fake_engine(), "tokenizer.decode", [[104, 105], [], [0x1F600]]) == ["hi", "", "\U0001f600"]


@pytest.mark.parametrize("wrong", [-1, 0x110000, 10**30])
def test_an_id_outside_of_the_vocabulary_is_named(wrong: int) -> None:
    with pytest.raises(BadInput, match=f"input 1 has the token id {wrong}; .* 0 to 1114111"):
        call(fake_engine(), "tokenizer.decode", [[1], [2, wrong]])


@pytest.mark.parametrize(
    ("task", "given", "part"),
    [
        ("tokenizer.tokenize", ["a" * MAX_TOKENIZED_CHARS, "a"], f"the limit is {MAX_TOKENIZED_CHARS}"),
        ("tokenizer.tokenize", [], "at least one text"),
        ("tokenizer.tokenize", [3], "not a text"),
        ("tokenizer.decode", [[1] * MAX_DECODED_IDS, [1]], f"the limit is {MAX_DECODED_IDS}"),
    ],
)
def test_too_much_and_too_little_is_refused(task: str, given: Any, part: str) -> None:
    with pytest.raises(BadInput, match=part):
        call(fake_engine(), task, given)


def test_a_model_without_a_tokenizer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fake_engine()
    object.__setattr__(engine.slot.model, "vocabulary", None)
    for task, given in (("tokenizer.tokenize", ["a"]), ("tokenizer.decode", [[1]])):
        with pytest.raises(ModelNotDeployedError, match="has no tokenizer to call"):
            call(engine, task, given)


def test_an_engine_that_is_not_running_and_one_that_is_full_refuse() -> None:
    with pytest.raises(EngineNotReady):
        run(fake_engine().tokenizer.tokenize(["a"]))
    with pytest.raises((Overloaded, BadInput), match="the queue holds at most 1"):
        call(fake_engine(max_queue_items=1), "tokenizer.decode", [[1], [2]])


def test_images_have_no_rows_of_tokens() -> None:
    with pytest.raises(ModelNotDeployedError, match="image inputs have no token vectors"):
        call(
            fake_engine("kind=embedder"),
            "embedder.encode_media",
            ["data:;base64,"],
            Modality.image,
            EmbedOptions(outputs=("tokens",)),
        )
