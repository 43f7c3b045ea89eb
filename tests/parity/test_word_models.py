"""Embedders from before transformers: tables of words, convolutions, bags of words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import (
    CNN,
    LSTM,
    BoW,
    Pooling,
    WordEmbeddings,
    WordWeights,
)
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

from tests.parity import references
from tests.parity.conftest import Serve
from tests.parity.references import assert_served_alike, load_embedder
from tests.parity.serving import LONG, assert_same_vectors
from tests.support.small_models import (
    WORDS,
    save_pipeline,
)

pytestmark = pytest.mark.model


def word_embeddings() -> WordEmbeddings:
    torch.manual_seed(0)
    vocabulary = ["PADDING_TOKEN", *WORDS]
    return WordEmbeddings(
        WhitespaceTokenizer(vocabulary, stop_words={"word3"}),
        torch.randn(len(vocabulary), 24),
        max_seq_length=50,
    )


def weights_of_words() -> WordWeights:
    return WordWeights(["PADDING_TOKEN", *WORDS], {"word5": 3.0, "word9": 0.2}, unknown_word_weight=0.7)


LEGACY: dict[str, Any] = {
    "words, mean": lambda: [word_embeddings(), Pooling(24)],
    "weighted words": lambda: [word_embeddings(), weights_of_words(), Pooling(24)],
    "words, convolution": lambda: [word_embeddings(), CNN(24, 8, kernel_sizes=[1, 3, 5]), Pooling(24)],
    "words, lstm": lambda: [word_embeddings(), LSTM(24, 8), Pooling(16, "max")],
    "bag of words": lambda: [BoW(WORDS, {"word5": 2.0}, unknown_word_weight=0.5)],
    "bag of words, once each": lambda: [BoW(WORDS, cumulative_term_frequency=False), Normalize()],
}


@pytest.mark.parametrize("name", LEGACY)
def test_models_without_a_transformer(name: str, serve: Serve, texts: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = save_pipeline(tmp_path / "model", LEGACY[name]())
    inputs = [*texts[:12], LONG, texts[1], "word5 word9 unknown"]
    assert_served_alike(serve, path, inputs, attention="none", reads_tokens=False)


@pytest.mark.parametrize("name", ["words, mean", "words, convolution", "bag of words"])
def test_a_text_without_a_known_word_has_the_vector_that_sentence_transformers_gives(
    name: str, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = save_pipeline(tmp_path / "model", LEGACY[name]())
    inputs = ["unknown", texts[0], "", texts[1]]
    assert_same_vectors(serve(path).embed(inputs), references.vectors(load_embedder(path).encode, inputs))
