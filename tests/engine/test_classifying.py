"""Classify texts and pairs of texts."""

from __future__ import annotations

from typing import Any

import pytest

from infinity_emb.backends import fake
from infinity_emb.errors import (
    BadInput,
    InputTooLong,
)
from infinity_emb.items import Pair
from tests.support.fake_engines import call, fake_engine
from tests.support.recording_models import RecordingModels

LONG = "x" * (fake.MAX_TOKENS + 1)


def test_all_labels_of_a_text_are_ranked() -> None:
    """The fake classifier's logits are the number of characters, and 0."""
    engine = fake_engine("kind=classifier")

    raw, num_tokens = call(engine, "classify", sentences=["four", "", "four"], raw_scores=True)
    assert num_tokens == 8
    assert raw == [
        [{"label": "characters", "score": 4}, {"label": "none", "score": 0}],
        [{"label": "characters", "score": 0}, {"label": "none", "score": 0}],
        [{"label": "characters", "score": 4}, {"label": "none", "score": 0}],
    ]
    activated, _ = call(engine, "classify", sentences=["four"])
    assert activated == [[{"label": "characters", "score": 2}, {"label": "none", "score": 0}]]


def test_texts_and_pairs_can_be_mixed(models: RecordingModels) -> None:
    sentences = ["four", ("a", "b"), "x", ("", "six"), ("a", "b")]
    raw, num_tokens = call(
        models.engine("kind=classifier"),
        "classify",
        sentences=sentences,
        raw_scores=True,
        truncation="right",
    )

    assert [labels[0]["score"] for labels in raw] == [4, 3, 1, 4, 3]
    assert num_tokens == 15
    assert {tuple(inputs) for inputs, _ in models.encoded} == {
        ("four", "x"),
        (Pair("a", "b"), Pair("", "six")),
    }
    assert {options.truncation for _, options in models.encoded} == {"right"}


@pytest.mark.parametrize(
    ("sentences", "position"),
    [
        (["a", LONG], 1),
        (["a", ("b", "c"), LONG], 2),
        ([("a", "b"), "a", ("a", LONG)], 2),
        (["a", (LONG, "a")], 1),
    ],
)
def test_an_error_names_the_position_of_the_text(sentences: list[Any], position: int) -> None:
    """In a request of texts and pairs it was named by its place among those of its kind."""
    with pytest.raises(InputTooLong, match=rf"^input {position} has 8\d+ tokens"):
        call(fake_engine("kind=classifier"), "classify", sentences=sentences, truncation="off")


@pytest.mark.parametrize(
    "sentences", [[], "a text", ["a", 5], [("a", 5)], [("a",)], [("a", "b", "c")], [(5, "a")]]
)
def test_anything_but_texts_and_pairs_is_refused(sentences: Any) -> None:
    with pytest.raises(BadInput, match="sentences"):
        call(fake_engine("kind=classifier"), "classify", sentences=sentences)
