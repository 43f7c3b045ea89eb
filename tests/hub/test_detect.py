"""The kind of a model is what its own files state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infinity_emb.errors import StartupError
from infinity_emb.hub.detect import detect_kind, lacks_weights, list_module_names, read_object

CLASSIFIER = ["BertForSequenceClassification"]
DECODER = ["Qwen3ForCausalLM"]


def modules(*types: str) -> list[dict[str, str]]:
    return [{"type": each} for each in types]


def stated(model_type: str) -> dict[str, Any]:
    return {"config_sentence_transformers.json": {"model_type": model_type}}


def architecture(*names: str, **values: Any) -> dict[str, Any]:
    return {"config.json": {"architectures": list(names), **values}}


def save(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


OWN = "sentence_transformers.sparse_encoder.modules"


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({}, "embedder"),
        ({"config.json": {}}, "embedder"),
        (architecture("BertModel"), "embedder"),
        # A sequence classifier is told by its labels; transformers takes two where the file has none.
        (architecture(*CLASSIFIER, id2label={"0": "LABEL_0"}), "reranker"),
        (architecture(*CLASSIFIER, id2label={"0": "no", "1": "yes"}), "classifier"),
        (architecture(*CLASSIFIER, num_labels=1), "reranker"),
        (architecture(*CLASSIFIER, num_labels=3), "classifier"),
        (architecture(*CLASSIFIER), "classifier"),
        # A pipeline says more than the network in it.
        (
            architecture(*CLASSIFIER) | {"modules.json": modules("sentence_transformers.models.Transformer")},
            "embedder",
        ),
        # What sentence-transformers wrote at the last save.
        (stated("SentenceTransformer"), "embedder"),
        (stated("SentenceTransformer") | architecture(*CLASSIFIER, id2label={"0": "x"}), "embedder"),
        (stated("SparseEncoder"), "sparse"),
        (stated("MultiVectorEncoder"), "multivector"),
        (stated("ColBERT"), "multivector"),
        (stated("CrossEncoder"), "reranker"),
        (stated("CrossEncoder") | architecture(*CLASSIFIER, id2label={"0": "x"}), "reranker"),
        (stated("CrossEncoder") | architecture(*CLASSIFIER, id2label={"0": "x", "1": "y"}), "classifier"),
        (stated("CrossEncoder") | architecture(*DECODER, id2label={"0": "x", "1": "y"}), "reranker"),
        (stated("something newer"), "embedder"),
        ({"config_sentence_transformers.json": {"__version__": {}}, "config.json": {}}, "embedder"),
        # Modules that only one kind has, where nothing is stated.
        ({"modules.json": modules("x.Transformer", f"{OWN}.SpladePooling")}, "sparse"),
        ({"modules.json": modules(f"{OWN}.SparseStaticEmbedding")}, "sparse"),
        ({"modules.json": modules("x.Transformer", "x.Pooling", "x.SparseAutoEncoder")}, "sparse"),
        ({"modules.json": modules("x.Transformer", "x.LogitScore")}, "reranker"),
        ({"modules.json": modules("x.Transformer", "x.Dense", "x.MultiVectorMask")}, "multivector"),
        ({"modules.json": modules("x.Transformer", "x.Pooling", "x.Dense")}, "embedder"),
        # Late interaction models of other libraries.
        ({"artifact.metadata": {}, "config.json": {}}, "multivector"),
        (architecture("ColPaliForRetrieval"), "multivector"),
        (architecture("HF_ColBERT"), "multivector"),
        (architecture(*DECODER), "embedder"),
    ],
)
def test_kind_is_what_the_files_state(files: dict[str, Any], kind: str, tmp_path: Path) -> None:
    assert detect_kind(save(tmp_path, files)) == kind


@pytest.mark.parametrize(
    ("name", "files", "kind"),
    [
        ("Qwen/Qwen3-Reranker-0.6B", architecture(*DECODER), "reranker"),
        ("some/model-rerank", architecture(*DECODER), "reranker"),
        ("Qwen/Qwen3-Embedding-0.6B", architecture(*DECODER), "embedder"),
        ("some/reranker", architecture("BertModel"), "embedder"),
        ("some/reranker", architecture(*DECODER) | {"modules.json": modules("x.Transformer")}, "embedder"),
        ("some/reranker", architecture(*CLASSIFIER, num_labels=2), "classifier"),
        ("some/reranker", stated("SentenceTransformer") | architecture("BertModel"), "embedder"),
    ],
)
def test_the_name_counts_where_a_language_model_s_files_leave_it_open(
    name: str, files: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    assert detect_kind(save(tmp_path, files), name) == kind


@pytest.mark.parametrize("content", ["{", "[]", '"text"', "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "config_sentence_transformers.json"])
def test_a_broken_config_is_named(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(StartupError, match=rf"{name} is not .*; download or save the model again"):
        detect_kind(tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", "[1]"])
def test_a_broken_list_of_modules_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(StartupError, match=r"modules\.json is not"):
        detect_kind(tmp_path)


def test_modules_are_named_by_their_class_in_order(tmp_path: Path) -> None:
    assert list_module_names(tmp_path) == []
    save(tmp_path, {"modules.json": [*modules("a.b.Transformer", "Pooling"), {}]})
    assert list_module_names(tmp_path) == ["Transformer", "Pooling", ""]


def test_a_file_that_is_missing_is_an_empty_object(tmp_path: Path) -> None:
    assert read_object(tmp_path / "config.json") == {}


def test_weights_lie_where_the_modules_say(tmp_path: Path) -> None:
    """Some repositories have another description of the network at their top."""
    network = tmp_path / "0_Transformer"
    network.mkdir()
    for each in (tmp_path, network):
        save(each, {"config.json": {"model_type": "bert"}})
    save(tmp_path, {"modules.json": [{"path": "0_Transformer"}]})
    (network / "model.safetensors").touch()
    assert not lacks_weights(tmp_path)


def test_an_adapter_says_where_the_weights_are(tmp_path: Path) -> None:
    save(tmp_path, {"config.json": {"model_type": "bert"}, "adapter_config.json": {}})
    assert not lacks_weights(tmp_path)


@pytest.mark.parametrize("place", ["", "0_Transformer"])
def test_a_network_without_weights_lacks_them_whatever_other_modules_have(place: str, tmp_path: Path) -> None:
    folder, dense = tmp_path / place, tmp_path / "1_Dense"
    for each in {folder, dense}:
        each.mkdir(exist_ok=True)
    save(folder, {"config.json": {"model_type": "bert"}})
    save(dense, {"config.json": {"in_features": 4}})
    save(tmp_path, {"modules.json": [{"path": place}, {"path": "1_Dense"}]})
    (dense / "model.safetensors").touch()
    assert lacks_weights(tmp_path)
    (folder / "pytorch_model.bin").touch()
    assert not lacks_weights(tmp_path)


def test_a_model_without_a_network_lacks_no_weights(tmp_path: Path) -> None:
    assert not lacks_weights(tmp_path)
    save(tmp_path, {"config.json": {}, "modules.json": modules("StaticEmbedding")})
    assert not lacks_weights(tmp_path)
