"""Embedders of every architecture and every module against SentenceTransformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import (
    CNN,
    Dropout,
    LayerNorm,
    Pooling,
    StaticEmbedding,
    WeightedLayerPooling,
)

from tests.parity.conftest import Serve
from tests.parity.references import assert_served_alike
from tests.parity.serving import LONG
from tests.support.small_models import (
    ARCHITECTURES,
    HIDDEN_SIZE,
    PACKED_ARCHITECTURES,
    make_tokenizer,
    save_network,
    save_pipeline,
    save_small_model,
)

pytestmark = pytest.mark.model

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
ON_TOKENS = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}


def dense(out_features: int, **options: Any) -> Dense:
    torch.manual_seed(3)
    return Dense(HIDDEN_SIZE, out_features, **options)


# What stands behind the transformer, made anew for each test.
PIPELINES: dict[str, Any] = {
    "dense with tanh": lambda: [Pooling(HIDDEN_SIZE), dense(24)],
    "dense without activation": lambda: [
        Pooling(HIDDEN_SIZE),
        dense(48, activation_function=torch.nn.Identity()),
    ],
    "dense without bias": lambda: [Pooling(HIDDEN_SIZE), dense(8, bias=False), Normalize()],
    "dense with residual": lambda: [Pooling(HIDDEN_SIZE), dense(HIDDEN_SIZE, use_residual=True)],
    "dense with projected residual": lambda: [Pooling(HIDDEN_SIZE), dense(20, use_residual=True)],
    "dense on tokens": lambda: [dense(20, **ON_TOKENS), Pooling(20, "max")],
    "layer norm": lambda: [Pooling(HIDDEN_SIZE, "cls"), layer_norm()],
    "normalized tokens": lambda: [Normalize(module_input_name="token_embeddings"), Pooling(HIDDEN_SIZE)],
    "dropout": lambda: [Pooling(HIDDEN_SIZE), Dropout(0.4), Normalize()],
    "transformer alone, two poolings": lambda: [Pooling(HIDDEN_SIZE, ("weightedmean", "max"))],
}


def layer_norm() -> LayerNorm:
    module = LayerNorm(HIDDEN_SIZE)
    torch.nn.init.normal_(module.norm.weight)
    torch.nn.init.normal_(module.norm.bias)
    return module


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: Any) -> Path:
    return save_network(tmp_path_factory.mktemp("backbone"), "bert")


@pytest.fixture(scope="module")
def transformer(backbone: Path) -> Transformer:
    module: Transformer = Transformer(str(backbone), max_seq_length=256)
    return module


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_vectors_of_every_architecture(
    model_type: str, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    attention = "packed" if model_type in PACKED_ARCHITECTURES else "padded"
    path = save_small_model(tmp_path, model_type)
    assert_served_alike(serve, path, [*texts, LONG, texts[1]], attention=attention)


@pytest.mark.parametrize(
    "mode", [*MODES, ("cls", "mean"), ("lasttoken", "max", "mean_sqrt_len_tokens"), MODES]
)
@pytest.mark.parametrize("model_type", ["bert", "mpnet"])
def test_every_pooling_mode(
    model_type: str, mode: Any, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    attention = "packed" if model_type == "bert" else "padded"
    path = save_small_model(tmp_path, model_type, pooling_mode=mode, normalize=False)
    assert_served_alike(serve, path, texts[:12], attention=attention)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_module_behind_the_transformer(
    name: str, transformer: Transformer, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = save_pipeline(tmp_path, [transformer, *PIPELINES[name]()])
    assert_served_alike(serve, path, texts[:12], attention="packed")


def test_an_average_of_layers(backbone: Path, serve: Serve, texts: list[str], tmp_path: Path) -> None:
    with_layers = Transformer(str(backbone), max_seq_length=256, config_kwargs={"output_hidden_states": True})
    with_layers.model.config.output_hidden_states = True
    weights = torch.nn.Parameter(torch.tensor([0.5, 2.0, 1.0]))
    layers = WeightedLayerPooling(HIDDEN_SIZE, num_hidden_layers=3, layer_start=1, layer_weights=weights)
    path = save_pipeline(tmp_path, [with_layers, layers, Pooling(HIDDEN_SIZE)])
    assert_served_alike(serve, path, texts[:12], attention="packed")


@pytest.mark.parametrize("max_seq_length", [None, 20])
def test_a_static_model(max_seq_length: int | None, serve: Serve, texts: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = make_tokenizer("roberta")._tokenizer
    if max_seq_length is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(max_seq_length)
    path = save_pipeline(tmp_path, [StaticEmbedding(tokenizer, embedding_dim=24), Normalize()])
    assert_served_alike(serve, path, [*texts, LONG], attention="none")


def test_a_convolution_never_sees_padding_or_a_neighbouring_text(
    transformer: Transformer, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    """Only texts of one length may share a batch; a padded one, or a flat row, gives other vectors."""
    torch.manual_seed(0)
    path = save_pipeline(tmp_path, [transformer, CNN(HIDDEN_SIZE, 8, kernel_sizes=[1, 3]), Pooling(16)])
    assert_served_alike(serve, path, texts[:12], attention="padded")
