from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinity_emb.errors import BadInput
from infinity_emb.items import Float32Array
from infinity_emb.postprocessing import average_pieces
from infinity_emb.preprocessing.chunking import MAX_PIECES, check_num_pieces

COUNTS = st.lists(st.integers(1, 6), min_size=1, max_size=12)


def random_rows(num_rows: int, seed: int, *, is_unit: bool) -> Float32Array:
    rows = np.random.default_rng(seed).standard_normal((num_rows, 5))
    if is_unit:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32)


@settings(deadline=None)
@given(counts=COUNTS, seed=st.integers(0, 999), is_unit=st.booleans())
def test_each_text_has_the_weighted_average_of_its_own_pieces(
    counts: list[int], seed: int, is_unit: bool
) -> None:
    """In float64 by numpy's own function, scaled back where the pieces have length 1."""
    rows = random_rows(sum(counts), seed, is_unit=is_unit) * (1 if is_unit else 3)
    weights = np.random.default_rng(seed).integers(1, 600, sum(counts)).tolist()

    averages = average_pieces(rows, counts, weights)
    assert (averages.shape, averages.dtype) == ((len(counts), 5), np.float32)
    start = 0
    for average, count in zip(averages, counts, strict=True):
        part = slice(start, start + count)
        expected = np.average(rows[part].astype(np.float64), axis=0, weights=weights[part])
        if is_unit:
            expected /= np.linalg.norm(expected)
        assert average == pytest.approx(expected, abs=2e-5)
        start += count


@given(counts=COUNTS, seed=st.integers(0, 999), is_unit=st.booleans())
def test_a_text_of_one_piece_has_exactly_its_own_vector(counts: list[int], seed: int, is_unit: bool) -> None:
    """Not one that was multiplied and divided again: it must not change with what stands beside it."""
    rows = random_rows(sum(counts), seed, is_unit=is_unit)
    averages = average_pieces(rows, counts, [7] * len(rows))

    starts = np.cumsum([0, *counts])
    for position, count in enumerate(counts):
        if count == 1:
            assert averages[position].tolist() == rows[starts[position]].tolist()


@pytest.mark.parametrize("odd", [2, 0])
def test_a_piece_that_is_not_normalised_leaves_its_own_text_as_it_is_and_no_other(odd: float) -> None:
    """An empty text changed the vectors of all texts that came with it."""
    rows = np.array([[1, 0], [0, 1], [0, odd], [1, 0], [0, odd]], dtype=np.float32)
    unit = [pytest.approx(0.5**0.5)] * 2
    assert average_pieces(rows, [2, 1, 2], [1, 1, 1, 1, 1]).tolist() == [unit, [0, odd], [0.5, odd / 2]]


def test_pieces_have_a_limit_and_texts_that_are_not_split_have_none() -> None:
    check_num_pieces(MAX_PIECES, 3)
    check_num_pieces(MAX_PIECES + 9, MAX_PIECES + 9)
    with pytest.raises(
        BadInput, match=f"into {MAX_PIECES + 1} pieces or more, the limit is {MAX_PIECES}; send"
    ):
        check_num_pieces(MAX_PIECES + 1, 3)


def test_pieces_that_cancel_each_other_out_are_not_divided_by_zero() -> None:
    rows = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    assert average_pieces(rows, [2], [5, 5]).tolist() == [[0, 0]]
