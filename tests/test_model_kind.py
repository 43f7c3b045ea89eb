"""The kind of a model is what its own files state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infinity_emb.errors import StartupError
from infinity_emb.model_kind import detect_kind

CLASSIFIER = ["BertForSequenceClassification"]


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"config.json": {"architectures": ["BertModel"]}}, "embedder"),
        ({"config.json": {}}, "embedder"),
        ({"config.json": {"architectures": CLASSIFIER, "id2label": {"0": "LABEL_0"}}}, "reranker"),
        ({"config.json": {"architectures": CLASSIFIER, "id2label": {"0": "no", "1": "yes"}}}, "classifier"),
        ({"config.json": {"architectures": CLASSIFIER}}, "classifier"),
        ({"config.json": {"architectures": CLASSIFIER}, "modules.json": []}, "embedder"),
        ({"config_sentence_transformers.json": {"model_type": "CrossEncoder"}}, "reranker"),
        ({"config_sentence_transformers.json": {"model_type": "SparseEncoder"}}, "sparse"),
        ({"config_sentence_transformers.json": {"model_type": "MultiVectorEncoder"}}, "multivector"),
        ({"config_sentence_transformers.json": {"model_type": "SentenceTransformer"}}, "embedder"),
        ({"config_sentence_transformers.json": {"__version__": {}}, "config.json": {}}, "embedder"),
    ],
)
def test_kind_is_what_the_files_state(files: dict[str, Any], kind: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert detect_kind(tmp_path) == kind


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_config_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(StartupError, match=r"config\.json is not"):
        detect_kind(tmp_path)
