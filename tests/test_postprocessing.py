from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from infinity_emb.errors import MatryoshkaDimError
from infinity_emb.items import Float32Array
from infinity_emb.postprocessing import (
    QuantizationRanges,
    check_dimensions,
    compute_ranges,
    quantize_vectors,
    truncate_dimensions,
)
from infinity_emb.types import EmbeddingDtype

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ROWS = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=2, max_dims=2, max_side=20),
    elements=st.floats(-1000, 1000, width=32),
)


@pytest.mark.parametrize("dimensions", [None, 1, 7, 13])
def test_dimensions_within_the_model_are_fine(dimensions: int | None) -> None:
    check_dimensions(dimensions, 13)


@pytest.mark.parametrize("dimensions", [-13, -1, 0, 14, 10**9])
def test_dimensions_outside_the_model_are_refused_with_the_range(dimensions: int) -> None:
    with pytest.raises(MatryoshkaDimError, match=rf"dimensions={dimensions} .* between 1 and 13"):
        check_dimensions(dimensions, 13)


@unhurried
@given(rows=ROWS, data=st.data())
def test_short_rows_have_length_one_and_keep_their_direction(rows: Float32Array, data: st.DataObject) -> None:
    dimensions = data.draw(st.integers(1, rows.shape[1]))
    short = truncate_dimensions(rows, dimensions)

    assert (short.shape, short.dtype) == ((len(rows), dimensions), np.float32)
    if dimensions == rows.shape[1]:
        assert short is rows
        return
    for row, kept in zip(short, rows[:, :dimensions], strict=True):
        norm = np.linalg.norm(kept.astype(np.float64))
        if norm > 1e-15:  # float32 squares of less are 0
            assert np.linalg.norm(row) == pytest.approx(1, abs=1e-5)
            assert np.allclose(row * norm, kept, rtol=1e-4, atol=norm * 1e-5)
        assert np.isfinite(row).all()


def test_a_row_whose_kept_part_is_zero_stays_zero() -> None:
    rows = np.array([[0, 0, 1], [3, 4, 0]], dtype=np.float32)
    assert truncate_dimensions(rows, 2).tolist() == [[0, 0], pytest.approx([0.6, 0.8])]


def test_nothing_is_done_where_nothing_is_cut() -> None:
    rows = np.array([[3, 4]], dtype=np.float32)
    assert truncate_dimensions(rows, None) is truncate_dimensions(rows, 2) is rows
    assert quantize_vectors(rows, EmbeddingDtype.float32) is rows


def test_the_rows_that_were_given_are_left_as_they_are() -> None:
    rows = np.array([[3, 4, 5]], dtype=np.float32)
    truncate_dimensions(rows, 2)
    for dtype in EmbeddingDtype:
        quantize_vectors(rows, dtype, compute_ranges(rows))
    assert rows.tolist() == [[3, 4, 5]]


@unhurried
@given(rows=ROWS)
def test_a_bit_is_set_where_a_value_is_above_zero_most_significant_first(rows: Float32Array) -> None:
    bits = quantize_vectors(rows, EmbeddingDtype.ubinary)

    num_bytes = -(-rows.shape[1] // 8)
    assert (bits.shape, bits.dtype) == ((len(rows), num_bytes), np.uint8)
    for row, packed in zip(rows, bits, strict=True):
        text = "".join("1" if value > 0 else "0" for value in row).ljust(8 * num_bytes, "0")
        assert "".join(f"{byte:08b}" for byte in packed) == text


@unhurried
@given(rows=ROWS)
def test_binary_is_ubinary_minus_128(rows: Float32Array) -> None:
    unsigned = quantize_vectors(rows, EmbeddingDtype.ubinary)
    signed = quantize_vectors(rows, EmbeddingDtype.binary)

    assert signed.dtype == np.int8
    assert (signed.astype(int) == unsigned.astype(int) - 128).all()


@pytest.mark.model
@pytest.mark.parametrize("dtype", [EmbeddingDtype.binary, EmbeddingDtype.ubinary])
@pytest.mark.parametrize("dimension", [8, 32, 384])
def test_bits_are_those_of_sentence_transformers(dtype: EmbeddingDtype, dimension: int) -> None:
    from sentence_transformers.util.quantization import quantize_embeddings

    rows = np.random.default_rng(0).standard_normal((50, dimension), dtype=np.float32)
    rows[0] = 0
    expected = np.asarray(quantize_embeddings(rows, precision=dtype.value))
    ours = quantize_vectors(rows, dtype)
    assert ours.dtype == expected.dtype
    assert (ours == expected).all()


# int8 and uint8

INT8_DTYPES = [EmbeddingDtype.int8, EmbeddingDtype.uint8]
STEPS_OF_ONE = QuantizationRanges(low=np.zeros(1, np.float32), high=np.full(1, 255, np.float32))


@st.composite
def rows_and_ranges(draw: st.DrawFn) -> tuple[Float32Array, QuantizationRanges]:
    """Values inside and outside of the ranges; dimensions of which some are constant or very narrow."""
    rows = draw(ROWS)
    calibration = draw(npst.arrays(np.float32, (3, rows.shape[1]), elements=st.floats(-1000, 1000, width=32)))
    return rows, compute_ranges(calibration)


def quantize_by_sentence_transformers(
    rows: Float32Array, dtype: EmbeddingDtype, ranges: QuantizationRanges
) -> Float32Array:
    from sentence_transformers.util.quantization import quantize_embeddings

    with np.errstate(over="ignore"):  # values far outside of a very narrow range
        return np.asarray(
            quantize_embeddings(rows, precision=dtype.value, ranges=np.stack([ranges.low, ranges.high]))
        )


@pytest.mark.model
@pytest.mark.parametrize("dtype", [each for each in EmbeddingDtype if each is not EmbeddingDtype.float16])
@pytest.mark.parametrize("dimension", [1, 7, 384])
def test_values_inside_the_ranges_are_those_of_sentence_transformers(
    dtype: EmbeddingDtype, dimension: int
) -> None:
    calibration = np.random.default_rng(0).standard_normal((60, dimension), dtype=np.float32)
    ranges = compute_ranges(calibration)
    rows = np.random.default_rng(1).uniform(ranges.low, ranges.high, (500, dimension)).astype(np.float32)
    rows = np.concatenate([rows, calibration])  # the ends of the ranges too
    expected = quantize_by_sentence_transformers(rows, dtype, ranges)
    ours = quantize_vectors(rows, dtype, ranges)
    assert ours.dtype == expected.dtype
    assert (ours == expected).all()


@pytest.mark.model
@pytest.mark.parametrize("dtype", INT8_DTYPES)
@unhurried
@given(drawn=rows_and_ranges())
def test_any_values_and_ranges_are_clipped_as_sentence_transformers_clips_them(
    drawn: tuple[Float32Array, QuantizationRanges], dtype: EmbeddingDtype
) -> None:
    rows, ranges = drawn
    ours = quantize_vectors(rows, dtype, ranges)
    assert ours.shape == rows.shape
    assert (ours == quantize_by_sentence_transformers(rows, dtype, ranges)).all()


@unhurried
@given(drawn=rows_and_ranges())
def test_a_larger_value_never_gets_a_smaller_number(drawn: tuple[Float32Array, QuantizationRanges]) -> None:
    rows, ranges = drawn
    numbers = quantize_vectors(np.sort(rows, axis=0), EmbeddingDtype.int8, ranges).astype(int)
    assert (np.diff(numbers, axis=0) >= 0).all()


@unhurried
@given(drawn=rows_and_ranges())
def test_int8_is_uint8_minus_128(drawn: tuple[Float32Array, QuantizationRanges]) -> None:
    signed = quantize_vectors(drawn[0], EmbeddingDtype.int8, drawn[1])
    unsigned = quantize_vectors(drawn[0], EmbeddingDtype.uint8, drawn[1])
    assert (signed.dtype, unsigned.dtype) == (np.int8, np.uint8)
    assert (signed.astype(int) == unsigned.astype(int) - 128).all()


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0, 0),
        (0.9, 0),
        (1, 1),
        (254.9, 254),
        (255, 255),
        (-0.1, 0),
        (-1, 0),
        (-1e30, 0),
        (256, 255),
        (1e30, 255),
    ],
)
def test_what_is_outside_the_ranges_becomes_their_end_and_does_not_wrap_around(
    value: float, number: int
) -> None:
    rows = np.array([[value]], dtype=np.float32)
    assert quantize_vectors(rows, EmbeddingDtype.uint8, STEPS_OF_ONE).item() == number
    assert quantize_vectors(rows, EmbeddingDtype.int8, STEPS_OF_ONE).item() == number - 128


@pytest.mark.parametrize("dtype", INT8_DTYPES)
@pytest.mark.parametrize("width", [0, 1e-45, 1e-40])
def test_a_dimension_without_width_divides_by_nothing(dtype: EmbeddingDtype, width: float) -> None:
    """1e-45 is the smallest float32: a 255th of it is 0."""
    low = np.zeros(2, dtype=np.float32)
    ranges = QuantizationRanges(low=low, high=np.array([width, 1], dtype=np.float32))
    numbers = quantize_vectors(np.array([[0, 0.5]], dtype=np.float32), dtype, ranges)
    lowest = np.iinfo(numbers.dtype).min
    assert numbers.tolist() == [[lowest, lowest + 127]]


def test_a_value_far_outside_of_a_narrow_dimension_is_clipped_without_a_warning() -> None:
    """Its number of steps is beyond float32."""
    ranges = QuantizationRanges(low=np.zeros(2, np.float32), high=np.full(2, 1e-38, np.float32))
    numbers = quantize_vectors(np.array([[-1e3, 1e3]], dtype=np.float32), EmbeddingDtype.uint8, ranges)
    assert numbers.tolist() == [[0, 255]]


@pytest.mark.parametrize("dtype", list(EmbeddingDtype))
def test_no_rows_stay_no_rows(dtype: EmbeddingDtype) -> None:
    assert len(quantize_vectors(np.zeros((0, 1), dtype=np.float32), dtype, STEPS_OF_ONE)) == 0


@pytest.mark.parametrize("dtype", INT8_DTYPES)
def test_the_numbers_of_a_row_do_not_depend_on_the_rows_beside_it(dtype: EmbeddingDtype) -> None:
    rows = np.random.default_rng(0).standard_normal((50, 8), dtype=np.float32)
    ranges = compute_ranges(rows[:20])
    together = quantize_vectors(rows, dtype, ranges)
    alone = [quantize_vectors(row[None], dtype, ranges)[0] for row in rows]
    assert (together == np.array(alone)).all()


@pytest.mark.parametrize("dtype", INT8_DTYPES)
def test_ranges_that_are_missing_or_of_other_vectors_are_our_own_mistake(dtype: EmbeddingDtype) -> None:
    rows = np.zeros((2, 3), dtype=np.float32)
    with pytest.raises(AssertionError, match="needs the ranges"):
        quantize_vectors(rows, dtype)
    with pytest.raises(AssertionError, match="3 dimensions, 1 ranges"):
        quantize_vectors(rows, dtype, STEPS_OF_ONE)


def test_ranges_are_the_extremes_of_each_dimension() -> None:
    ranges = compute_ranges(np.array([[1, 5], [-2, 5], [0, 5]], dtype=np.float32))
    assert (ranges.low.tolist(), ranges.high.tolist()) == ([-2, 5], [1, 5])
    assert ranges.low.dtype == ranges.high.dtype == np.float32


# float16


@unhurried
@given(
    rows=npst.arrays(
        np.float32,
        npst.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=20),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
def test_float16_is_the_nearest_finite_number(rows: Float32Array) -> None:
    halves = quantize_vectors(rows, EmbeddingDtype.float16)
    assert (halves.shape, halves.dtype) == (rows.shape, np.float16)
    assert np.isfinite(halves).all()
    inside = np.abs(rows) <= 65504
    assert (halves[inside] == rows[inside].astype(np.float16)).all()
    assert (halves[~inside] == np.sign(rows[~inside]) * 65504).all()
