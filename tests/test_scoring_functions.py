"""Similarities against sentence-transformers' own functions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinity_emb.items import Float32Array, SparseVector
from infinity_emb.postprocessing import cosine_scores, sparse_scores

model = pytest.mark.model  # the reference needs torch


def random_rows(num_rows: int, dim: int, seed: int) -> Float32Array:
    return np.random.default_rng(seed).standard_normal((num_rows, dim)).astype(np.float32)


@model
@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(0, 999))
def test_cosines_are_those_of_sentence_transformers(num_rows: int, dim: int, seed: int) -> None:
    from sentence_transformers.util import cos_sim

    query, *documents = random_rows(num_rows + 1, dim, seed)
    expected = cos_sim(query, np.array(documents)).numpy()[0]

    scores = cosine_scores(query, np.array(documents))
    assert scores.dtype == np.float32
    assert np.abs(scores - expected).max() <= 1e-6


def test_a_vector_of_zeros_is_similar_to_nothing() -> None:
    """0 / 0 would be NaN, which has no place in an order."""
    rows = np.array([[0, 0], [3, 4]], dtype=np.float32)
    assert cosine_scores(rows[1], rows).tolist() == [0, 1]
    assert cosine_scores(rows[0], rows).tolist() == [0, 0]


def sparse(row: Float32Array) -> SparseVector:
    indices = np.flatnonzero(row).astype(np.int32)
    return SparseVector(indices, row[indices])


@model
@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(1, 70), st.integers(0, 999))
def test_dot_products_of_sparse_rows_are_those_of_the_whole_rows(num_rows: int, dim: int, seed: int) -> None:
    from sentence_transformers.util import dot_score

    rows = np.maximum(random_rows(num_rows + 1, dim, seed), 0)
    rows[:, ::3] = 0
    expected = dot_score(rows[0], rows[1:]).numpy()[0]

    scores = sparse_scores(sparse(rows[0]), [sparse(row) for row in rows[1:]])
    assert scores.dtype == np.float32
    assert np.abs(scores - expected).max() <= 1e-5


def test_sparse_rows_without_a_common_index_have_the_score_0() -> None:
    rows = np.eye(3, dtype=np.float32)
    empty = sparse(np.zeros(3, dtype=np.float32))
    assert sparse_scores(sparse(rows[0]), [sparse(rows[1]), empty, sparse(rows[0])]).tolist() == [0, 0, 1]
    assert sparse_scores(empty, [sparse(rows[1])]).tolist() == [0]
