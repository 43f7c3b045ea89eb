"""Kinds of models that not every engine has, against sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.contract.conftest import REAL_ENGINES
from tests.parity.references import load_reranker, load_sparse_encoder, raw_scores, sparse_vectors
from tests.parity.serving import Served, assert_same_scores, assert_same_vectors
from tests.support.small_models import save_small_classifier, save_small_splade

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]
Start = Callable[..., Served]


@pytest.mark.parametrize("engine", REAL_ENGINES)
def test_rerankers_rank_as_cross_encoders_do(
    start: Start, reranker_folder: Path, texts: list[str], engine: str
) -> None:
    served = start(reranker_folder, engine=engine)
    reference = load_reranker(reranker_folder)
    expected = raw_scores(reference, texts[0], texts)
    assert_same_scores(served.scores(texts[0], texts, raw_scores=True), expected)


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_classifier(tmp_path_factory.mktemp("classifier"), "distilbert", num_labels=3)


@pytest.mark.parametrize("engine", REAL_ENGINES)
def test_classifiers_answer_every_label(
    start: Start, classifier_folder: Path, texts: list[str], engine: str
) -> None:
    served = start(classifier_folder, engine=engine)
    model = load_reranker(classifier_folder)
    logits = np.array([model.predict(text, activation_fn=torch.nn.Identity()) for text in texts])
    labels = served.labels(texts, raw_scores=True)
    assert_same_scores([[each[f"LABEL_{number}"] for number in range(3)] for each in labels], logits)


@pytest.fixture(scope="module")
def splade_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_splade(tmp_path_factory.mktemp("splade"), "bert")


@pytest.mark.parametrize("engine", REAL_ENGINES)
def test_sparse_models_answer_the_same_entries(
    start: Start, splade_folder: Path, texts: list[str], engine: str
) -> None:
    served = start(splade_folder, engine=engine)
    expected = sparse_vectors(load_sparse_encoder(splade_folder).encode, texts)
    assert_same_vectors(served.sparse(texts), expected)
