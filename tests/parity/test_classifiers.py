"""Classifiers against the text classification pipeline of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import pipeline

from tests.parity.conftest import Serve
from tests.parity.serving import LONG, Served, assert_same_scores
from tests.support.small_models import save_small_classifier

pytestmark = pytest.mark.model

NAMES = {
    "id2label": {0: "joy", 1: "anger", 2: "no opinion"},
    "label2id": {"joy": 0, "anger": 1, "no opinion": 2},
}
# Architecture, config values, the activation that follows from them, and how the model runs.
MODELS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "softmax": ("bert", NAMES, "softmax", "packed"),
    "several labels may hold": (
        "roberta",
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        "sigmoid",
        "packed",
    ),
    "regression": ("xlm-roberta", {"num_labels": 2, "problem_type": "regression"}, "none", "packed"),
    "mean of the tokens": (
        "modernbert",
        {"num_labels": 4, "classifier_pooling": "mean"},
        "softmax",
        "packed",
    ),
    "distilbert": ("distilbert", NAMES, "softmax", "packed"),
    "electra": ("electra", NAMES, "softmax", "packed"),
    "albert": ("albert", NAMES, "softmax", "packed"),
    "decoder": ("qwen3", {"num_labels": 2}, "softmax", "packed"),
    "decoder with windows": ("gemma3_text", NAMES, "softmax", "packed"),
    "mpnet": ("mpnet", NAMES, "softmax", "padded"),
    "deberta": ("deberta-v2", NAMES, "softmax", "padded"),
}

Compared = tuple[Served, Any]


@pytest.fixture(scope="module", params=MODELS)
def compared(request: pytest.FixtureRequest, serve: Serve, tmp_path_factory: Any) -> Compared:
    model_type, values, activation, attention = MODELS[request.param]
    num_labels = values.get("num_labels", 3)
    path = save_small_classifier(
        tmp_path_factory.mktemp("classifier"), model_type, **({"num_labels": num_labels} | values)
    )
    served = serve(path)
    assert served.engine.info.kind == "classifier"
    assert served.engine.info.activation == activation
    assert served.attention == attention, served.engine.info.attention_reason
    assert served.reads_tokens
    return served, pipeline("text-classification", str(path), top_k=None, device="cpu", dtype=torch.float32)


def assert_same_labels(
    actual: list[dict[str, float]], classify: Any, texts: list[str | tuple[str, str]], **options: Any
) -> None:
    inputs = [each if isinstance(each, str) else {"text": each[0], "text_pair": each[1]} for each in texts]
    expected = [_by_label(classify(each, truncation=True, **options)) for each in inputs]
    assert [set(each) for each in actual] == [set(each) for each in expected]
    names = sorted(expected[0])
    assert_same_scores(
        np.array([[each[name] for name in names] for each in actual]),
        np.array([[each[name] for name in names] for each in expected]),
    )


def _by_label(answer: Any) -> dict[str, float]:
    """The pipeline puts the labels of one text into one list or into two."""
    labels = answer[0] if isinstance(answer[0], list) else answer
    return {each["label"]: each["score"] for each in labels}


def test_labels_and_scores_equal_the_pipelines(compared: Compared, texts: list[str]) -> None:
    served, classify = compared
    inputs = [*texts, LONG, "", texts[1]]
    assert_same_labels(served.labels(inputs), classify, inputs)


def test_raw_scores_are_the_logits(compared: Compared, texts: list[str]) -> None:
    served, classify = compared
    assert_same_labels(
        served.labels(texts[:8], raw_scores=True), classify, texts[:8], function_to_apply="none"
    )


def test_pairs_and_texts_may_stand_in_one_request(compared: Compared, texts: list[str]) -> None:
    served, classify = compared
    inputs = [
        texts[0],
        (texts[1], texts[2]),
        texts[3],
        (LONG, texts[4]),
        (texts[5], "word9"),
        (texts[1], texts[2]),
    ]
    assert_same_labels(served.labels(inputs), classify, inputs)
