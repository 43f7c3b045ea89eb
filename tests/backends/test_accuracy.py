from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from infinity_emb.backends.accuracy import BOUNDS, Accuracy, Bound, center, compare, find_bound, to_dense
from infinity_emb.items import SparseVector
from infinity_emb.types import Dtype

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
    assert compare([answer], [expected]).min_cosine == pytest.approx(float(found), abs=1e-9)


@given(answer=vectors)
def test_what_is_equal_does_not_differ(answer: Any) -> None:
    found = compare([answer], [answer.copy()])
    assert found == pytest.approx((0, 1, 1))


def test_the_worst_row_counts() -> None:
    expected = np.eye(3, dtype=np.float32)
    answer = expected.copy()
    answer[1] = row(1, 0, 0)
    assert compare([answer], [expected]) == pytest.approx((1, 0, 2 / 3))
    assert compare(answer, expected) == pytest.approx((1, 0, 2 / 3))


def test_a_difference_is_a_part_of_the_largest_number_that_was_expected_or_of_1() -> None:
    assert compare([row(0.5, 0.25)], [row(0.5, 0)]).max_difference == 0.25
    assert compare([row(64, 1)], [row(64, 0)]).max_difference == 1 / 64
    assert compare([row(0.5, 0.25)], [row(0.5, 0)], min_scale=0).max_difference == 0.5
    assert compare([row(0, 0)], [row(0, 0)], min_scale=0).max_difference == math.inf


@pytest.mark.parametrize("answer", [row(1, math.nan), row(1, math.inf), row(1), row(1, 0, 0)])
def test_what_cannot_be_compared_is_as_far_away_as_can_be(answer: Any) -> None:
    assert compare([answer], [row(1, 0)]) == (math.inf, -1, -1)
    assert compare([answer], [row(1, 0)], are_scores=True) == (math.inf, None, None)


def test_zeros_agree_with_zeros_alone() -> None:
    assert compare([row(0, 0)], [row(0, 0)]).min_cosine == 1
    assert compare([row(0, 1)], [row(0, 0)]).min_cosine == 0


def test_every_dtype_has_a_bound_for_engines() -> None:
    assert {dtype.value for dtype in Dtype if dtype is not Dtype.auto} == BOUNDS["engine"].keys()


def test_every_purpose_has_a_bound_for_float32_which_unknown_dtypes_share() -> None:
    for purpose, bounds in BOUNDS.items():
        assert find_bound(purpose, "int3_from_somewhere") is bounds["float32"]


@pytest.mark.parametrize(
    ("accuracy", "violation"),
    [
        (Accuracy(9e-5, 1.0, 1.0), ""),
        (Accuracy(0.0, 0.99995, 1.0), ""),
        (Accuracy(9e-5), ""),
        (Accuracy(2e-4, 1.0, 1.0), "differs from torch by 2e-04, the limit is 1e-04"),
        (Accuracy(math.inf), "differs from torch by inf, the limit is 1e-04"),
        (Accuracy(0.0, 0.998, 1.0), "has a cosine of 0.99800 to torch's vectors, the limit is 0.9999"),
        (Accuracy(0.0, math.nan, 1.0), "has a cosine of nan to torch's vectors, the limit is 0.9999"),
        (Accuracy(math.nan, 1.0, 1.0), "differs from torch by nan, the limit is 1e-04"),
    ],
)
def test_a_violation_names_the_value_and_the_limit(accuracy: Accuracy, violation: str) -> None:
    bound = find_bound("engine", "float32")
    assert bound.find_violation(accuracy) == violation
    assert bound.holds(accuracy) is (not violation)


def test_scores_and_vectors_have_a_limit_each() -> None:
    bound = Bound(max_difference=0.1, max_score_difference=0.2)
    assert not bound.holds(Accuracy(0.15, 1.0, 1.0))
    assert bound.holds(Accuracy(0.15))


def test_the_mean_cosine_has_a_limit_too() -> None:
    found = Accuracy(0.0, None, 0.4)
    assert (
        find_bound("weights", "int8").find_violation(found).startswith("has a mean cosine of 0.40 to torch")
    )


def test_scores_have_no_cosine() -> None:
    assert str(Accuracy(2e-6)) == "difference 2e-06"


def test_sparse_vectors_are_compared_whatever_their_entries_are() -> None:
    def sparse(*entries: int) -> SparseVector:
        return SparseVector(np.array(entries, np.int32), np.ones(len(entries), np.float32))

    assert compare([sparse(2, 9)], [sparse(2, 9)]).max_difference == 0
    assert compare([sparse(2)], [sparse(2, 9)])[:2] == pytest.approx((1.0, 0.5**0.5))
    assert compare([sparse()], [sparse()])[:2] == (0.0, 1.0)


def test_centering_removes_what_all_vectors_share() -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    shared = vectors + 100 * np.arange(8, dtype=np.float32)
    assert np.abs(center(shared) - center(vectors)).max() < 1e-3
    assert np.abs(center(vectors).mean(axis=1)).max() < 1e-6


def test_a_sparse_row_has_its_values_at_its_indices_and_zeros_elsewhere() -> None:
    found = to_dense(SparseVector(np.array([1, 3], dtype=np.int32), row(0.5, 2)), 5)
    assert found.dtype == np.float32
    assert found.tolist() == [0, 0.5, 0, 2, 0]
