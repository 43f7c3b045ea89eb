from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from infinity_emb.agreement import BOUNDS, cosine, difference, scattered
from infinity_emb.backends.base import SparseRow
from infinity_emb.primitives import Dtype

vectors = arrays.arrays(np.float32, 5, elements=st.floats(-100, 100, width=32))


def row(*values: float) -> Any:
    return np.array(values, dtype=np.float32)


@given(answer=vectors, expected=vectors)
def test_the_cosine_of_vectors_is_torchs(answer: Any, expected: Any) -> None:
    lengths = np.linalg.norm(answer), np.linalg.norm(expected)
    if min(lengths) < 1e-3:
        return  # torch counts short ones as longer than they are
    both = torch.from_numpy(np.stack([answer, expected])).double()
    found = torch.cosine_similarity(both[0], both[1], dim=0)
    assert cosine(answer, expected) == pytest.approx(float(found), abs=1e-9)


@given(answer=vectors)
def test_what_is_equal_does_not_differ(answer: Any) -> None:
    assert difference(answer, answer.copy()) == 0
    assert cosine(answer, answer.copy()) == pytest.approx(1)


def test_the_worst_row_counts() -> None:
    expected = np.eye(3, dtype=np.float32)
    answer = expected.copy()
    answer[1] = row(1, 0, 0)
    assert cosine(answer, expected) == 0


def test_a_difference_is_a_part_of_the_largest_number_that_was_expected_or_of_1() -> None:
    assert difference(row(0.5, 0.25), row(0.5, 0)) == 0.25
    assert difference(row(64, 1), row(64, 0)) == 1 / 64


@pytest.mark.parametrize("answer", [row(1, math.nan), row(1, math.inf), row(1), row(1, 0, 0)])
def test_what_cannot_be_compared_is_as_far_away_as_can_be(answer: Any) -> None:
    assert difference(answer, row(1, 0)) == math.inf
    assert cosine(answer, row(1, 0)) == -1


def test_zeros_agree_with_zeros_alone() -> None:
    assert cosine(row(0, 0), row(0, 0)) == 1
    assert cosine(row(0, 1), row(0, 0)) == 0


def test_every_number_format_has_a_bound() -> None:
    assert {each.value for each in Dtype if each is not Dtype.auto} == BOUNDS.keys()


def test_a_sparse_row_has_its_values_at_its_indices_and_zeros_elsewhere() -> None:
    found = scattered(SparseRow(np.array([1, 3], dtype=np.int32), row(0.5, 2)), 5)
    assert found.dtype == np.float32
    assert found.tolist() == [0, 0.5, 0, 2, 0]
