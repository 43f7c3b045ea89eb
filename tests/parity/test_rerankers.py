"""Rerankers with a classification head against CrossEncoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from infinity_emb.errors import InputTooLong
from tests.parity import references
from tests.parity.conftest import Serve
from tests.parity.references import copied, load_reranker
from tests.parity.serving import LONG, Served, assert_same_scores
from tests.support.small_models import (
    ARCHITECTURES,
    HIDDEN_SIZE,
    PACKED_ARCHITECTURES,
    save_network,
    save_small_classifier,
)

pytestmark = pytest.mark.model

QUERY = "word12 word7 word300 word41"
IDENTITY = "torch.nn.modules.linear.Identity"

Compared = tuple[Served, CrossEncoder]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def compared(request: pytest.FixtureRequest, serve: Serve, tmp_path_factory: Any) -> Compared:
    path = save_small_classifier(tmp_path_factory.mktemp("reranker"), request.param)
    served = serve(path)
    is_packed = request.param in PACKED_ARCHITECTURES
    assert served.attention == ("packed" if is_packed else "padded"), served.engine.info.attention_reason
    assert served.reads_tokens
    return served, load_reranker(path)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: Any) -> Path:
    return save_small_classifier(tmp_path_factory.mktemp("bert"), "bert")


def test_scores_equal_cross_encoders(compared: Compared, texts: list[str]) -> None:
    served, model = compared
    assert served.engine.info.kind == "reranker"
    assert served.engine.info.activation == "sigmoid"
    assert_same_scores(served.scores(QUERY, texts), references.scores(model, QUERY, texts))


def test_raw_scores_leave_out_the_activation(compared: Compared, texts: list[str]) -> None:
    served, model = compared
    actual = served.scores(QUERY, texts[:8], raw_scores=True)
    assert_same_scores(actual, references.raw_scores(model, QUERY, texts[:8]))


def test_long_empty_and_equal_documents_are_read_as_cross_encoder_reads_them(
    compared: Compared, texts: list[str]
) -> None:
    served, model = compared
    docs = [LONG, "", texts[1], LONG + " word9", texts[1], " "]
    requests = [(QUERY, docs), (LONG, docs), ("", texts[:3])]
    actual = np.concatenate([served.scores(*request) for request in requests])
    assert_same_scores(actual, np.concatenate([references.scores(model, *request) for request in requests]))


def test_a_prompt_stands_before_the_query_alone(compared: Compared, texts: list[str]) -> None:
    served, model = compared
    actual = served.scores(QUERY, texts[:6], prompt="word77 word78 ")
    expected = references.scores(model, QUERY, texts[:6], prompt="word77 word78 ")
    assert_same_scores(actual, expected)
    assert_same_scores(actual, references.scores(model, f"word77 word78 {QUERY}", texts[:6]))


@pytest.mark.parametrize(
    ("changes", "activation"),
    [
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, "identity"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}, "tanh"),
        ({"sbert_ce_default_activation_function": IDENTITY}, "identity"),
    ],
)
def test_the_activation_is_what_the_config_names(
    changes: dict[str, Any], activation: str, bert: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = copied(bert, tmp_path / "reranker")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))

    served = serve(path)

    assert served.engine.info.activation == activation
    model = load_reranker(path)
    assert_same_scores(served.scores(QUERY, texts[:8]), references.scores(model, QUERY, texts[:8]))
    raw = references.raw_scores(model, QUERY, texts[:8])
    assert_same_scores(served.scores(QUERY, texts[:8], raw_scores=True), raw)


def test_a_folder_that_cross_encoder_saved_keeps_its_activation_and_prompts(
    bert: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    prompts = {"web": "word8 word9 ", "news": "word10 "}
    model = CrossEncoder(
        str(bert), activation_fn=torch.nn.Tanh(), prompts=prompts, default_prompt_name="web", device="cpu"
    )
    model.save_pretrained(str(tmp_path / "saved"))
    model = load_reranker(tmp_path / "saved")

    served = serve(tmp_path / "saved")

    assert served.engine.info.activation == "tanh"
    assert served.attention == "packed"
    for options in ({}, {"prompt_name": "news"}, {"prompt": "word1 word2 "}, {"prompt": ""}):
        actual = served.scores(QUERY, texts[:8], **options)
        assert_same_scores(actual, references.scores(model, QUERY, texts[:8], **options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checkpoint_in_half_precision_is_computed_in_float32(
    dtype: torch.dtype, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = save_small_classifier(tmp_path, "xlm-roberta", dtype=dtype)
    served = serve(path)
    assert served.engine.info.dtype == "float32"
    expected = references.scores(load_reranker(path), QUERY, texts[:8])
    assert_same_scores(served.scores(QUERY, texts[:8]), expected)


def test_what_the_config_of_a_decoder_calls_padding_may_end_a_document(
    serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    """Its head reads the last token that is not the config's padding, which is a plain character here."""
    path = save_small_classifier(tmp_path, "qwen2")
    served, model = serve(path), load_reranker(path)
    assert model.config is not None
    padding = model.tokenizer.convert_ids_to_tokens(model.config.pad_token_id)
    assert len(padding) == 1
    docs = [texts[0] + padding, padding * 3 + texts[1], texts[2] + padding * 5, padding]
    assert_same_scores(served.scores(QUERY, docs), references.scores(model, QUERY, docs))


def test_a_pair_that_may_not_be_cut_is_refused(compared: Compared) -> None:
    with pytest.raises(InputTooLong, match="the limit is 256"):
        compared[0].scores(QUERY, ["word1", LONG], truncation="off")


@pytest.mark.parametrize("model_type", ["bert", "qwen3"])
def test_a_head_of_separate_modules(model_type: str, serve: Serve, texts: list[str], tmp_path: Path) -> None:
    """Pooling and a linear layer behind a network without a classification head."""
    transformer = Transformer(str(save_network(tmp_path / "backbone", model_type)), max_seq_length=256)
    torch.manual_seed(0)
    head = Dense(HIDDEN_SIZE, 1, activation_function=torch.nn.Identity(), module_output_name="scores")
    CrossEncoder(modules=[transformer, Pooling(HIDDEN_SIZE), head], device="cpu").save_pretrained(
        str(tmp_path / "model")
    )
    served, model = serve(tmp_path / "model"), load_reranker(tmp_path / "model")
    assert served.engine.info.kind == "reranker"
    assert served.attention == "packed", served.engine.info.attention_reason
    assert_same_scores(served.scores(QUERY, texts), references.scores(model, QUERY, texts))


def test_the_best_documents_come_first(compared: Compared, texts: list[str]) -> None:
    served, model = compared
    expected = references.scores(model, QUERY, texts)
    ranked, num_tokens = served.wait_for(served.engine.rerank(query=QUERY, docs=texts, top_n=5))
    assert [each.index for each in ranked] == (-expected).argsort(kind="stable")[:5].tolist()
    assert num_tokens == sum(model.preprocess([(QUERY, doc)])["input_ids"].shape[1] for doc in texts)
