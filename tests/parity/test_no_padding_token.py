"""Models whose tokenizers have no padding token, which sentence-transformers refuses to compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tests.parity import references
from tests.parity.conftest import Serve
from tests.parity.references import load_embedder, load_reranker
from tests.parity.serving import LONG, assert_same_scores, assert_same_vectors
from tests.support.small_models import save_network, save_small_classifier, save_small_model
from tests.support.small_models.changes import drop_padding_token, rewrite_json

pytestmark = pytest.mark.model

TYPES = ["gpt2", "llama", "mistral", "qwen3"]


def give_padding_token(model: Any) -> None:
    """As a user of the reference has to, before the first text."""
    assert model.tokenizer.pad_token is None
    model.tokenizer.pad_token = "[SEP]"


@pytest.mark.parametrize("pooling_mode", ["lasttoken", "mean"])
@pytest.mark.parametrize("model_type", TYPES)
def test_vectors_equal_those_of_single_texts(
    model_type: str, pooling_mode: str, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = save_small_model(tmp_path, model_type, pooling_mode=pooling_mode)
    drop_padding_token(path)
    served, reference = serve(path), load_embedder(path)
    give_padding_token(reference)
    inputs = [*texts, LONG, "word1 [SEP] word2"]
    assert_same_vectors(served.embed(inputs), references.vectors(reference.encode, inputs))
    assert served.attention == "packed", served.engine.info.attention_reason


@pytest.mark.parametrize("model_type", TYPES)
def test_a_bare_language_model(model_type: str, serve: Serve, texts: list[str], tmp_path: Path) -> None:
    path = save_network(tmp_path / "model", model_type, AutoModelForCausalLM)
    drop_padding_token(path)
    served, reference = serve(path), load_embedder(path)
    give_padding_token(reference)
    assert_same_vectors(served.embed(texts[:8]), references.vectors(reference.encode, texts[:8]))


@pytest.mark.parametrize("model_type", TYPES)
def test_a_reranker_reads_the_last_token_of_each_pair(
    model_type: str, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    """The end token, which stands in for padding, belongs to every text and is not passed over."""
    path = save_small_classifier(tmp_path, model_type)
    drop_padding_token(path)
    rewrite_json(path / "config.json", pad_token_id=None)
    served, reference = serve(path), load_reranker(path)
    give_padding_token(reference)
    expected = references.scores(reference, texts[0], texts[:12])
    assert_same_scores(served.scores(texts[0], texts[:12]), expected)
