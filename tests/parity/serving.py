"""An engine that plain test functions ask, and how near its answers must be to the reference's.

The references are sentence-transformers and transformers themselves, asked for one text at a time: they pad
a batch, and padding changes the last digits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from infinity_emb.backends.torch.encoders import ProcessorEncoder
from infinity_emb.engine.results import Embeddings, EmbedOptions
from infinity_emb.items import SparseVector
from tests.support.small_models import random_texts

T = TypeVar("T")
Array = npt.NDArray[Any]

LONG = " ".join(random_texts(12, max_words=120, seed=5))  # far over the limit of 256 tokens

MAX_VECTOR_DIFFERENCE = 2e-5
MIN_COSINE = 0.99999
MAX_SCORE_DIFFERENCE = 1e-5


def engine_args(path: Path, **options: Any) -> EngineArgs:
    """Two replicas of one thread each: batches run side by side, and more threads only slow small models."""
    options = {"device": "cpu", "model_warmup": False, "device_id": (0, 1), "threads": 1} | options
    return EngineArgs(model_name_or_path=str(path), **options)


class Served:
    """One running engine."""

    def __init__(self, engine: AsyncEmbeddingEngine, loop: asyncio.AbstractEventLoop) -> None:
        self.engine = engine
        self._loop = loop

    def wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(coroutine)

    @property
    def attention(self) -> str:
        """packed, padded or none."""
        return self.engine.info.attention

    @property
    def model(self) -> Any:
        """The loaded model; backends have more attributes than their interface."""
        return self.engine.slot.model

    @property
    def reads_tokens(self) -> bool:
        """Whether texts of every task go the fast way, and not through the model's own preprocessing."""
        encode = self.model.encode
        encoders = getattr(encode, "text_encoders", {None: encode}).values()
        return not any(isinstance(encoder, ProcessorEncoder) for encoder in encoders)

    def encode(self, texts: list[str], **options: Any) -> Embeddings:
        return self.wait_for(self.engine.encode(texts, EmbedOptions(**options)))

    def embed(self, texts: list[str], **options: Any) -> Array:
        """(N, D)"""
        dense = self.encode(texts, **options).dense
        assert dense is not None
        return np.array(dense)

    def sparse(self, texts: list[str], **options: Any) -> Array:
        """(N, vocabulary)"""
        rows = self.encode(texts, **options).sparse
        assert rows is not None
        return spread_out(rows, self.engine.info.embedding_dimension)

    def multivector(self, texts: list[str], **options: Any) -> Sequence[Array]:
        """(n, D) each"""
        rows = self.encode(texts, **options).multivector
        assert rows is not None
        return rows

    def scores(self, query: str, docs: list[str], **options: Any) -> Array:
        """(N,) in the documents' order"""
        ranked, _ = self.wait_for(self.engine.rerank(query=query, docs=docs, **options))
        scores = np.full(len(docs), np.nan)
        for each in ranked:
            assert each.document == docs[each.index]
            scores[each.index] = each.relevance_score
        return scores

    def labels(self, texts: Sequence[str | tuple[str, str]], **options: Any) -> list[dict[str, float]]:
        """Each text's scores by label."""
        answers, _ = self.wait_for(self.engine.classify(sentences=texts, **options))
        for answer in answers:
            given = [each["score"] for each in answer]
            assert given == sorted(given, reverse=True)
        return [{each["label"]: each["score"] for each in answer} for answer in answers]


def spread_out(rows: Sequence[SparseVector], width: int) -> Array:
    """Sparse rows as (N, width)."""
    dense = np.zeros((len(rows), width), dtype=np.float32)
    for row, (indices, values) in zip(dense, rows, strict=True):
        assert (np.diff(indices) > 0).all(), "indices must ascend"
        row[indices] = values
    return dense


def assert_same_vectors(actual: Any, expected: Any) -> None:
    """(N, D) each, or two lists of (n, D). Vectors that are all alike would prove nothing."""
    if isinstance(expected, list):
        assert [each.shape for each in actual] == [each.shape for each in expected]
        actual, expected = np.concatenate(list(actual)), np.concatenate(expected)
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= MAX_VECTOR_DIFFERENCE
    norms = np.linalg.norm(actual, axis=1) * np.linalg.norm(expected, axis=1)
    with_length = norms > 0
    cosines = (actual * expected).sum(axis=1)[with_length] / norms[with_length]
    assert cosines.min() >= MIN_COSINE
    assert len(expected) == 1 or np.ptp(expected, axis=0).max() > 0.01, (
        "the reference's vectors are all alike"
    )


def assert_same_scores(actual: Any, expected: Any) -> None:
    """Arrays of one shape. Scores that are all alike would prove nothing."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= MAX_SCORE_DIFFERENCE
    assert expected.size == 1 or np.ptp(expected) > 1e-3, "the reference's scores are all alike"
