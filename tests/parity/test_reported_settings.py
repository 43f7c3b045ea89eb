"""Settings of folders that were reported, or bent one by one: as the reference serves them, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import pipeline

from infinity_emb.errors import StartupError
from tests.parity import references
from tests.parity.conftest import Serve
from tests.parity.references import assert_served_alike, copied, load_embedder, load_reranker
from tests.parity.serving import LONG, Served, assert_same_scores, assert_same_vectors
from tests.support.small_models import HIDDEN_SIZE, save_small_classifier, save_small_model
from tests.support.small_models.changes import rewrite_json

pytestmark = pytest.mark.model

PADDING = {
    "strategy": {"Fixed": 128},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 1,
    "pad_type_id": 0,
    "pad_token": "[PAD]",
}
TRUNCATION = {"direction": "Right", "max_length": 32, "strategy": "LongestFirst", "stride": 0}
# File → keys of it that are bent; of the list of modules, those of its second member.
KEYS = {
    "config.json": "model_type vocab_size hidden_size num_attention_heads hidden_act max_position_embeddings"
    " type_vocab_size layer_norm_eps architectures dtype pad_token_id transformers_version is_decoder",
    "tokenizer_config.json": "model_max_length tokenizer_class pad_token cls_token do_lower_case"
    " truncation_side padding_side model_input_names backend",
    "sentence_bert_config.json": "max_seq_length do_lower_case transformer_task modality_config"
    " module_output_name",
    "config_sentence_transformers.json": "prompts default_prompt_name similarity_fn_name model_type"
    " __version__ truncate_dim",
    "1_Pooling/config.json": "embedding_dimension pooling_mode include_prompt",
    "modules.json": "idx name path type",
}
# What a key may be bent to.
BENDS: dict[str, Callable[[Any], Any]] = {
    "null": lambda value: None,
    "list": lambda value: [value],
}
# sentence-transformers pads a single text, too.
SERVED_HERE_ALONE = [("pad_token", "null")]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: Any) -> Path:
    return save_small_model(tmp_path_factory.mktemp("embedder"), "bert")


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: Any) -> Path:
    return save_small_classifier(tmp_path_factory.mktemp("reranker"), "bert")


@pytest.mark.parametrize(
    "settings",
    [{"padding": PADDING}, {"truncation": TRUNCATION}, {"padding": PADDING, "truncation": TRUNCATION}],
    ids=lambda settings: " and ".join(settings),
)
def test_padding_and_truncation_of_the_tokenizers_file_are_not_used(
    settings: dict[str, Any], embedder: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = copied(embedder, tmp_path / "model")
    rewrite_json(path / "tokenizer.json", **settings)
    assert_served_alike(serve, path, [*texts[:8], LONG, ""])


@pytest.mark.parametrize(
    "config",
    [
        {"embedding_dimension": HIDDEN_SIZE, "pooling_mode": "cls"},
        {"word_embedding_dimension": HIDDEN_SIZE, "pooling_mode": "max"},
        {"embedding_dimension": HIDDEN_SIZE, "pooling_mode": ["cls", "mean"]},
        {"embedding_dimension": HIDDEN_SIZE},
    ],
    ids=str,
)
def test_pooling_written_in_one_word(
    config: dict[str, Any], embedder: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = copied(embedder, tmp_path / "model")
    (path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert_served_alike(serve, path, texts[:8])


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flash_attention_2", "flash_attention_3"])
def test_attention_named_in_the_config_is_used_or_refused_as_by_the_reference(
    implementation: str, embedder: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = copied(embedder, tmp_path / "model")
    rewrite_json(path / "config.json", _attn_implementation=implementation)
    check_as_the_reference(path, serve, texts)


def list_bends() -> Iterator[Any]:
    for file, keys in KEYS.items():
        for key in keys.split():
            for bend in BENDS:
                yield pytest.param(file, key, bend, id=f"{file} {key} {bend}")


@pytest.mark.parametrize(("file", "key", "bend"), list(list_bends()))
def test_a_bent_key_is_read_as_by_the_reference_or_refused(
    file: str, key: str, bend: str, embedder: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = copied(embedder, tmp_path / "model")
    if (key, bend) in SERVED_HERE_ALONE:
        rewrite_json(path / file, **{key: None})
        expected = references.vectors(load_embedder(embedder).encode, texts[:4])
        assert_same_vectors(serve(path).embed(texts[:4]), expected)
        return
    content = json.loads((path / file).read_text())
    values = content[1] if isinstance(content, list) else content
    values[key] = BENDS[bend](values.get(key, 1))
    (path / file).write_text(json.dumps(content))
    check_as_the_reference(path, serve, texts)


@pytest.mark.parametrize("file", KEYS)
@pytest.mark.parametrize("change", ["CRLF", "BOM", "UTF-16", "a comma too much", "a key of the future"])
def test_a_file_written_in_another_way_is_read_as_by_the_reference_or_refused(
    file: str, change: str, embedder: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = copied(embedder, tmp_path / "model")
    content = json.dumps(json.loads((path / file).read_text()), indent=2)
    if change == "CRLF":
        (path / file).write_bytes(content.replace("\n", "\r\n").encode())
    elif change == "BOM":
        (path / file).write_text(content, encoding="utf-8-sig")
    elif change == "UTF-16":
        (path / file).write_text(content, encoding="utf-16")
    elif change == "a comma too much":
        (path / file).write_text(f"{content[:-2]},{content[-2:]}")
    else:
        values = json.loads(content)
        (values[0] if isinstance(values, list) else values)["of_the_future"] = {"a": [1]}
        (path / file).write_text(json.dumps(values))
    check_as_the_reference(path, serve, texts)


def check_as_the_reference(path: Path, serve: Serve, texts: list[str]) -> None:
    """Either both serve the folder with the same vectors, or ours refuses it by name."""
    inputs = [*texts[:4], LONG, ""]
    served = serve_or_refuse(serve, path)
    if served is not None:
        assert_same_vectors(served.embed(inputs), references.vectors(load_embedder(path).encode, inputs))


def serve_or_refuse(serve: Serve, path: Path, **options: Any) -> Served | None:
    """Return None for a folder that is refused with its path in one line."""
    message = ""
    try:
        return serve(path, **options)
    except StartupError as exc:
        message = str(exc)
    assert str(path) in message
    assert len(message.splitlines()) == 1
    return None


@pytest.mark.parametrize("name", ["GELU", "Hardtanh", "LogSigmoid", "ReLU", "SiLU", "Sigmoid", "Softplus"])
@pytest.mark.parametrize("place", ["sentence_transformers", "sbert_ce_default_activation_function"])
def test_a_reranker_may_name_any_activation_of_torch(
    name: str, place: str, reranker: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = copied(reranker, tmp_path / "reranker")
    activation = f"torch.nn.modules.activation.{name}"
    rewrite_json(
        path / "config.json",
        **{place: {"activation_fn": activation} if place == "sentence_transformers" else activation},
    )
    expected = references.scores(load_reranker(path), texts[0], texts[1:9])
    assert_same_scores(serve(path).scores(texts[0], texts[1:9]), expected)


@pytest.mark.parametrize(
    "id2label",
    [
        {"1": "a", "2": "b"},
        {"0": "a", "2": "b"},
        {"a": "0", "b": "1"},
        {"0": "a", "1": 7},
        {"0": "a"},
        {"0": "a", "1": "b", "2": "c"},
        ["a", "b"],
        {},
    ],
    ids=str,
)
def test_labels_are_those_of_the_pipeline_or_refused(
    id2label: Any, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = save_small_classifier(tmp_path / "model", "bert", num_labels=2)
    rewrite_json(path / "config.json", id2label=id2label, label2id=None)
    served = serve_or_refuse(serve, path, model_kind="classifier")
    if served is None:
        return
    classify: Any = pipeline("text-classification", str(path), top_k=None, device="cpu", dtype=torch.float32)
    for text, labels in zip(texts[:4], served.labels(texts[:4]), strict=True):
        found = classify(text, truncation=True)
        rows = found[0] if isinstance(found[0], list) else found
        assert len({row["label"] for row in rows}) == len(rows), "labels are told apart"
        assert labels == pytest.approx({str(row["label"]): row["score"] for row in rows}, abs=1e-5)


def test_a_classifier_of_one_label_is_served_as_either_kind(
    serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    """Models of toxicity have one label, and look like rerankers."""
    path = save_small_classifier(tmp_path / "model", "bert", id2label={0: "toxic"}, label2id={"toxic": 0})
    assert serve(path).engine.info.kind == "reranker"
    labels = serve(path, model_kind="classifier").labels(texts[:6])
    model = load_reranker(path)
    expected = [float(model.predict(text)) for text in texts[:6]]
    assert [list(each) for each in labels] == [["toxic"]] * 6
    assert_same_scores(np.array([each["toxic"] for each in labels]), np.array(expected))


def test_a_reranker_of_two_labels_is_a_classifier_of_pairs(
    serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = save_small_classifier(tmp_path / "model", "bert", num_labels=2)
    served = serve(path)
    assert served.engine.info.kind == "classifier"
    pairs = [(texts[0], text) for text in texts[1:7]]
    model = CrossEncoder(str(path), device="cpu", activation_fn=torch.nn.Softmax(dim=-1))
    expected = np.array([model.predict(pair) for pair in pairs])  # (B, 2)
    found = [[each["LABEL_0"], each["LABEL_1"]] for each in served.labels(pairs)]
    assert_same_scores(np.array(found), expected)
