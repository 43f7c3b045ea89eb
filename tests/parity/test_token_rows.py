"""The output `tokens` against the hidden states of transformers itself, one text at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from transformers import AutoModel, AutoTokenizer

from infinity_emb.errors import BadInput, ModelNotDeployedError
from tests.parity.conftest import Serve
from tests.parity.serving import LONG, Array, Served, assert_same_vectors
from tests.support.small_models import (
    HIDDEN_SIZE,
    make_tokenizer,
    save_network,
    save_pipeline,
    save_small_classifier,
    save_small_late_interaction,
    save_small_m3,
    save_small_model,
    save_small_splade,
)

pytestmark = pytest.mark.model

LIMIT = 40
PROMPT = "word9 word10 "
MODELS = {"bert": "packed", "modernbert": "packed", "qwen2": "packed", "mpnet": "padded"}


def hidden_states(path: Path, texts: list[str], max_tokens: int = LIMIT) -> list[Array]:
    """(n, H) of each text, of the network in this folder; nothing of sentence-transformers takes part."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    network = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    rows = []
    for text in texts:
        features = tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt")
        with torch.inference_mode():
            rows.append(network(**features).last_hidden_state[0].numpy())
    return rows


def token_rows(served: Served, texts: list[str], **options: Any) -> Any:
    answer = served.encode(texts, outputs=("tokens",), **options)
    assert (answer.dense, answer.sparse, answer.multivector) == (None, None, None)
    assert answer.tokens is not None
    assert answer.num_tokens == sum(len(rows) for rows in answer.tokens)
    return answer.tokens


@pytest.mark.parametrize("model_type", MODELS)
def test_rows_are_the_last_hidden_states(
    model_type: str, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = save_small_model(tmp_path, model_type, max_seq_length=LIMIT)
    served = serve(path)
    assert served.attention == MODELS[model_type]
    inputs = [*texts, LONG, "word1"]
    assert_same_vectors(token_rows(served, inputs), hidden_states(path, inputs))
    prompted = [PROMPT + text for text in inputs]
    assert_same_vectors(token_rows(served, inputs, prompt=PROMPT), hidden_states(path, prompted))
    short = token_rows(served, inputs, max_tokens=9)
    assert_same_vectors(short, hidden_states(path, inputs, max_tokens=9))


def test_they_come_before_projections_and_normalisations_of_tokens(
    serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    backbone = save_network(tmp_path / "backbone", "bert")
    on_tokens = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    modules = [
        Transformer(str(backbone), max_seq_length=LIMIT),
        Dense(HIDDEN_SIZE, 8, **on_tokens),
        Normalize(module_input_name="token_embeddings"),
        Pooling(8),
    ]
    served = serve(save_pipeline(tmp_path / "model", modules))
    assert_same_vectors(token_rows(served, texts), hidden_states(backbone, texts))


def test_late_interaction_and_m3_models_have_them_too(serve: Serve, texts: list[str], tmp_path: Path) -> None:
    late = save_small_late_interaction(tmp_path / "late", "bert")
    expected = hidden_states(tmp_path / "late" / "backbone", texts, max_tokens=256)
    assert_same_vectors(token_rows(serve(late), texts), expected)
    m3 = save_small_m3(tmp_path / "m3")
    assert_same_vectors(token_rows(serve(m3), texts), hidden_states(m3, texts, max_tokens=256))


def test_each_route_of_a_router_has_its_own(serve: Serve, texts: list[str], tmp_path: Path) -> None:
    folders = {name: save_network(tmp_path / name, "bert") for name in ("query", "document")}
    with torch.no_grad():
        network = AutoModel.from_pretrained(folders["query"])
        for parameter in network.parameters():
            parameter.mul_(1.1)
        network.save_pretrained(folders["query"])
    routes = {name: [Transformer(str(folder)), Pooling(HIDDEN_SIZE)] for name, folder in folders.items()}
    served = serve(
        save_pipeline(
            tmp_path / "model",
            [Router.for_query_document(**{f"{name}_modules": each for name, each in routes.items()})],
        )
    )
    for name, folder in folders.items():
        actual = token_rows(served, texts, input_type=name)
        assert_same_vectors(actual, hidden_states(folder, texts, max_tokens=256))


def test_models_without_such_rows_say_so(serve: Serve, tmp_path: Path) -> None:
    static = save_pipeline(
        tmp_path / "static", [StaticEmbedding(make_tokenizer("bert").backend_tokenizer, embedding_dim=8)]
    )
    for path in (
        save_small_splade(tmp_path / "splade", "bert"),
        save_small_classifier(tmp_path / "classifier", "bert", num_labels=3),
        static,
    ):
        with pytest.raises(ModelNotDeployedError, match=r"does not have|does not support"):
            serve(path).encode(["a"], outputs=("tokens",))


def test_they_are_answered_alone(serve: Serve, bert: Path) -> None:
    served = serve(bert)
    with pytest.raises(ModelNotDeployedError, match="does not have the outputs 'tokens'"):
        served.encode(["a"], outputs=("dense", "tokens"))
    with pytest.raises(BadInput, match="chunking averages dense vectors"):
        served.encode(["a"], outputs=("tokens",), chunking=True)
