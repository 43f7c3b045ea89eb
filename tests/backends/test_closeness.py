"""The rule for what may replace the present way to compute a model without being asked for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats  # type: ignore[import-untyped]  # scipy brings no types
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from infinity_emb.backends.base import identity_activation
from infinity_emb.backends.closeness import (
    FLOAT32_NOISE,
    MAX_SCORE_CHANGE,
    Scores,
    compare_texts,
    correlate_ranks,
    find_objection,
    make_scores,
    measure_change,
    measure_noise,
)
from infinity_emb.items import SparseVector
from infinity_emb.types import ModelKind

# Few different values, so that equal ones occur.
rows = arrays.arrays(np.float64, 12, elements=st.integers(-20, 20).map(lambda number: number / 20))
shifts = arrays.arrays(np.float64, 12, elements=st.floats(-1, 1))


def scores(*values: float, are_labels: bool = False) -> Scores:
    return Scores((np.array(values),), are_labels=are_labels)


@given(old=rows, shift=shifts, size=st.floats(0, 0.009))
def test_what_stays_within_the_noise_of_the_present_way_is_accepted(
    old: Any, shift: Any, size: float
) -> None:
    other = old.copy()
    other[0] += size  # a batch of other texts has moved this score
    assert find_objection(Scores((old + shift * size,)), [Scores((old,)), Scores((other,))]) == ""


@given(old=rows, shifts=st.lists(shifts, min_size=1, max_size=4), chosen=st.integers(0, 3))
def test_the_present_ways_own_batchings_are_always_accepted(old: Any, shifts: Any, chosen: int) -> None:
    batchings = [Scores((old + shift / 50,)) for shift in shifts]
    new = batchings[chosen % len(batchings)]
    assert find_objection(new, batchings, Scores((old,))) == ""


@given(old=rows, shift=shifts, size=st.floats(0, 0.5))
def test_what_is_accepted_changes_no_order_but_of_scores_that_were_near(
    old: Any, shift: Any, size: float
) -> None:
    new = old + shift * size
    if find_objection(Scores((new,)), [Scores((old,))]):
        return
    assert np.abs(new - old).max() <= MAX_SCORE_CHANGE
    before, after = (row[:, None] - row[None, :] for row in (old, new))
    assert not (
        before[np.abs(before) > 2 * FLOAT32_NOISE] * after[np.abs(before) > 2 * FLOAT32_NOISE] <= 0
    ).any()


@settings(deadline=None)  # scipy's first call takes long
@given(after=rows, before=rows)
def test_the_rank_correlation_is_spearmans(after: Any, before: Any) -> None:
    if len(set(after)) == 1 or len(set(before)) == 1:
        return
    assert correlate_ranks(after, before) == pytest.approx(scipy.stats.spearmanr(after, before).statistic)


@given(row=rows, shift=shifts)
def test_a_rank_correlation_is_never_beyond_1_and_is_1_for_equal_rows(row: Any, shift: Any) -> None:
    assert correlate_ranks(row, row.copy()) == 1
    assert -1 - 1e-9 <= correlate_ranks(row + shift, row) <= 1 + 1e-9


def test_a_score_that_moves_too_far_is_refused_although_no_order_changes() -> None:
    objection = find_objection(scores(0.93, 0.5), [scores(0.9, 0.5)])
    assert objection == "moves a score by 3.0e-02, the limit is 0.02"


def test_an_order_that_changes_beyond_the_noise_is_refused_however_high_the_cosine() -> None:
    new, old = scores(0.500, 0.501, 0.1), scores(0.503, 0.501, 0.1)
    assert find_objection(new, [old]) == (
        "changes 1 orders or labels, of scores up to 2.0e-03 apart, and the noise is 1.0e-05"
    )
    assert find_objection(new, [old, scores(0.502, 0.501, 0.1)]) == ""  # batching moves one by half as much


def test_an_order_that_becomes_a_tie_has_changed() -> None:
    assert find_objection(scores(0.5, 0.5), [scores(0.501, 0.5)])


def test_what_is_nearer_to_float32_than_the_present_way_is_accepted() -> None:
    reference = scores(0.5, 0.4, 0.3)
    present = scores(0.55, 0.41, 0.42)
    near, far = scores(0.51, 0.4, 0.3), scores(0.5, 0.4, 0.45)
    assert find_objection(near, [present])
    assert find_objection(near, [present], reference) == ""
    assert find_objection(far, [present], reference)


def test_one_far_score_is_not_made_up_for_by_many_near_ones() -> None:
    reference = Scores((np.linspace(0, 1, 50),))
    present = Scores((reference.rows[0] + 0.03 * (-1) ** np.arange(50),))
    new = reference.rows[0].copy()
    new[7] += 0.2
    assert find_objection(Scores((new,)), [present], reference)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_refused_whatever_the_noise(wrong: float) -> None:
    old = scores(0.5, 0.4)
    assert find_objection(scores(wrong, 0.4), [old], old)
    assert find_objection(scores(0.5, 0.4, 0.3), [old], old)
    assert find_objection(old, [scores(wrong, 0.4)], old)
    assert find_objection(scores(wrong, 0.4), [old, scores(wrong, 0.4)], old)


def test_the_noise_is_at_least_that_of_float32() -> None:
    assert measure_noise([scores(0.5)]) == FLOAT32_NOISE
    assert measure_noise([scores(0.5), scores(0.5)]) == FLOAT32_NOISE
    assert measure_noise([scores(0.5), scores(0.503), scores(0.499)]) == pytest.approx(0.003)


def test_of_labels_only_the_highest_counts() -> None:
    old = scores(0.5, 0.3, 0.2, are_labels=True)
    assert measure_change(scores(0.51, 0.25, 0.26, are_labels=True), old).num_reorders == 0
    changed = measure_change(scores(0.39, 0.4, 0.2, are_labels=True), old)
    assert (changed.num_reorders, changed.widest_margin, changed.mean_rank) == (1, pytest.approx(0.2), 0)


def test_raw_scores_move_relative_to_the_largest() -> None:
    assert measure_change(scores(10.1, -3), scores(10, -3)).max_change == pytest.approx(0.01)
    assert measure_change(scores(0.2, 0.1), scores(0.1, 0.1)).max_change == pytest.approx(0.1)


def test_the_top_ten_are_those_of_the_row_before() -> None:
    before = np.arange(20.0)
    after = before.copy()
    after[[0, 19]] = after[[19, 0]]
    assert measure_change(Scores((after,)), Scores((before,))).top_overlap == pytest.approx(0.9)
    assert measure_change(scores(1, 1, 1), scores(1, 1, 1)).top_overlap == 1


def test_texts_are_compared_by_the_cosines_to_all_others() -> None:
    (first, second, third) = compare_texts([np.array(row, np.float32) for row in ([2, 0], [3, 3], [0, 1])])
    assert first == pytest.approx([0.5**0.5, 0])
    assert second == pytest.approx([0.5**0.5, 0.5**0.5])
    assert third == pytest.approx([0, 0.5**0.5])


def test_several_vectors_of_a_text_interact_late() -> None:
    query, document = np.eye(2, dtype=np.float32), np.array([[1, 0], [1, 1], [2, 0]], np.float32)
    found = compare_texts([query, document])
    assert found[0] == pytest.approx([(1 + 0.5**0.5) / 2])
    assert found[1] == pytest.approx([(1 + 0.5**0.5 + 1) / 3])


def test_sparse_vectors_are_compared_at_a_common_width() -> None:
    def sparse(*entries: int) -> SparseVector:
        return SparseVector(np.array(entries, np.int32), np.ones(len(entries), np.float32))

    found = compare_texts([sparse(1, 7), sparse(7), sparse()])
    assert [row.tolist() for row in found] == [
        pytest.approx([0.5**0.5, 0]),
        pytest.approx([0.5**0.5, 0]),
        [0, 0],
    ]


def test_outputs_become_the_scores_that_clients_see() -> None:
    raw = [np.array([number, -number], np.float32) for number in (1, 2, 3)]
    classified = make_scores(raw, ModelKind.classifier, np.tanh)
    assert classified.are_labels
    assert [len(row) for row in classified.rows] == [2, 2, 2]
    assert classified.rows[2] == pytest.approx(np.tanh([3, -3]))
    (ranked,) = make_scores([row[:1] for row in raw], ModelKind.reranker, identity_activation).rows
    assert ranked.tolist() == [1, 2, 3]
    both = make_scores(raw * 2, ModelKind.embedder, identity_activation, num_outputs=2)
    assert [len(row) for row in both.rows] == [2] * 6
