"""What sentence-transformers answers, asked for one text at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder

from tests.parity.conftest import Serve
from tests.parity.serving import Array, Served, assert_same_vectors


def load_embedder(path: Path) -> SentenceTransformer:
    """In float32, whatever the checkpoint is in."""
    return SentenceTransformer(str(path), device="cpu").float()


def load_reranker(path: Path) -> CrossEncoder:
    """In float32, whatever the checkpoint is in."""
    model: CrossEncoder = CrossEncoder(str(path), device="cpu", model_kwargs={"dtype": torch.float32})
    return model


def load_sparse_encoder(path: Path) -> SparseEncoder:
    return SparseEncoder(str(path), device="cpu")


def load_late_interaction(path: Path) -> MultiVectorEncoder:
    return MultiVectorEncoder(str(path), device="cpu")


def one_by_one(encode: Callable[..., Any], inputs: Sequence[Any], **options: Any) -> list[Any]:
    """`encode` is a method of a sentence-transformers model that takes a list."""
    return [encode([each], show_progress_bar=False, **options)[0] for each in inputs]


def vectors(encode: Callable[..., Any], texts: Sequence[str], **options: Any) -> Array:
    """(N, D) of `encode`, `encode_query` or `encode_document` of an embedder."""
    return np.array(one_by_one(encode, texts, **options))


def assert_served_alike(
    serve: Serve, path: Path, texts: list[str], *, attention: str = "packed", reads_tokens: bool = True
) -> Served:
    """The embedder of a folder answers these texts as SentenceTransformer does, in the expected way.

    attention, reads_tokens: as `Served` says; otherwise a model that silently falls back would pass.
    """
    served = serve(path)
    assert served.attention == attention, served.engine.info.attention_reason
    assert served.reads_tokens is reads_tokens
    expected = vectors(load_embedder(path).encode, texts)
    assert_same_vectors(served.embed(texts), expected)
    assert served.engine.info.embedding_dimension == expected.shape[1]
    return served


def sparse_vectors(encode: Callable[..., Any], texts: Sequence[str], **options: Any) -> Array:
    """(N, vocabulary)"""
    rows = one_by_one(encode, texts, convert_to_tensor=True, convert_to_sparse_tensor=False, **options)
    return torch.stack(rows).numpy()


def token_vectors(encode: Callable[..., Any], texts: Sequence[str], **options: Any) -> list[Array]:
    """(n, D) each."""
    return one_by_one(encode, texts, convert_to_numpy=True, **options)


def scores(model: CrossEncoder, query: str, docs: Sequence[str], **options: Any) -> Array:
    """(N,)"""
    return np.array(one_by_one(model.predict, [(query, doc) for doc in docs], **options))


def raw_scores(model: CrossEncoder, query: str, docs: Sequence[str]) -> Array:
    """(N,) logits."""
    return scores(model, query, docs, activation_fn=torch.nn.Identity())


def copied(source: Path, target: Path) -> Path:
    """A folder to change without changing the one that others use."""
    shutil.copytree(source, target)
    return target
