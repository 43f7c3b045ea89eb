"""Sparse models against SparseEncoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder, SparseStaticEmbedding

from tests.parity import references
from tests.parity.conftest import Serve
from tests.parity.references import load_sparse_encoder
from tests.parity.serving import LONG, MAX_SCORE_DIFFERENCE, Served, assert_same_scores, assert_same_vectors
from tests.support.small_models import (
    HIDDEN_SIZE,
    VOCABULARY_SIZE,
    make_tokenizer,
    save_network,
    save_small_splade,
    save_sparse_encoder,
    splade_modules,
)

pytestmark = pytest.mark.model

# Architecture, pooling, activation, and how the model runs.
SPLADES = [
    ("bert", "max", "relu", "packed"),
    ("bert", "sum", "relu", "packed"),
    ("distilbert", "max", "log1p_relu", "packed"),
    ("xlm-roberta", "max", "relu", "packed"),
    ("modernbert", "sum", "log1p_relu", "packed"),
    ("mpnet", "max", "relu", "padded"),
]

Compared = tuple[Served, SparseEncoder]


@pytest.fixture(scope="module", params=SPLADES, ids=lambda each: "-".join(each[:3]))
def splade(request: pytest.FixtureRequest, serve: Serve, tmp_path_factory: Any) -> Compared:
    model_type, strategy, activation, attention = request.param
    path = save_small_splade(
        tmp_path_factory.mktemp("splade"), model_type, strategy=strategy, activation=activation
    )
    served = serve(path)
    assert served.engine.info.kind == "sparse"
    assert served.attention == attention, served.engine.info.attention_reason
    assert served.reads_tokens
    return served, load_sparse_encoder(path)


def static_embedding() -> SparseStaticEmbedding:
    torch.manual_seed(0)
    weights = torch.rand(VOCABULARY_SIZE) + 0.1
    return SparseStaticEmbedding(tokenizer=make_tokenizer("bert"), weight=weights, frozen=True)


def test_weights_equal_sparse_encoders(splade: Compared, texts: list[str]) -> None:
    served, model = splade
    inputs = [*texts, LONG, "", texts[1]]
    assert_same_vectors(served.sparse(inputs), references.sparse_vectors(model.encode, inputs))


def test_prompts_equal_sparse_encoders(splade: Compared, texts: list[str]) -> None:
    served, model = splade
    expected = references.sparse_vectors(model.encode, texts[:4], prompt="word9 word10 ")
    assert_same_vectors(served.sparse(texts[:4], prompt="word9 word10 "), expected)


def test_rerank_is_the_dot_product(splade: Compared, texts: list[str]) -> None:
    served, model = splade
    query = references.sparse_vectors(model.encode_query, texts[2:3])
    documents = references.sparse_vectors(model.encode_document, texts)
    expected = (documents @ query.T)[:, 0]
    limit = MAX_SCORE_DIFFERENCE * max(1.0, np.abs(expected).max())  # they are sums of hundreds of products
    assert np.abs(served.scores(texts[2], texts) - expected).max() <= limit


@pytest.mark.parametrize("max_active_dims", [1, 7, 100])
def test_the_largest_weights_alone(
    max_active_dims: int, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    modules = splade_modules(tmp_path / "backbone", "bert")
    path = save_sparse_encoder(tmp_path / "model", modules, max_active_dims=max_active_dims)
    served, model = serve(path), load_sparse_encoder(path)
    assert served.attention == "packed"
    actual = served.sparse(texts)
    assert_same_vectors(actual, references.sparse_vectors(model.encode, texts))
    assert (actual > 0).sum(axis=1).max() == max_active_dims


def test_a_static_sparse_model(serve: Serve, texts: list[str], tmp_path: Path) -> None:
    path = save_sparse_encoder(tmp_path, [static_embedding()])
    served, model = serve(path), load_sparse_encoder(path)
    inputs = [*texts, LONG, texts[1], "unknown"]
    assert_same_vectors(served.sparse(inputs), references.sparse_vectors(model.encode, inputs))
    assert_same_scores(
        served.scores(texts[2], texts) / 10,
        references.sparse_vectors(model.encode, texts)
        @ references.sparse_vectors(model.encode, texts[2:3])[0]
        / 10,
    )


def test_queries_by_a_table_and_documents_by_a_transformer(
    serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    documents = splade_modules(tmp_path / "backbone", "bert")
    router = Router.for_query_document([static_embedding()], documents)
    path = save_sparse_encoder(tmp_path / "model", [router])
    served, model = serve(path), load_sparse_encoder(path)
    assert served.attention == "packed", served.engine.info.attention_reason
    inputs = [*texts, LONG]
    for input_type, encode in (
        (None, model.encode),
        ("query", model.encode_query),
        ("document", model.encode_document),
    ):
        actual = served.sparse(inputs, input_type=input_type)
        assert_same_vectors(actual, references.sparse_vectors(encode, inputs))


@pytest.mark.parametrize("k", [4, 16])
def test_a_sparse_autoencoder_on_dense_vectors(
    k: int, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    backbone = save_network(tmp_path / "backbone", "bert")
    torch.manual_seed(0)
    modules = [
        Transformer(str(backbone), max_seq_length=256),
        Pooling(HIDDEN_SIZE),
        SparseAutoEncoder(HIDDEN_SIZE, hidden_dim=128, k=k, k_aux=32, normalize=True),
    ]
    path = save_sparse_encoder(tmp_path / "model", modules)
    served, model = serve(path), load_sparse_encoder(path)
    assert served.engine.info.kind == "sparse"
    assert served.attention == "packed", served.engine.info.attention_reason
    assert_same_vectors(served.sparse(texts), references.sparse_vectors(model.encode, texts))
