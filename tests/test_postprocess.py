from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from infinity_emb.backends.base import Rows
from infinity_emb.errors import MatryoshkaDimError
from infinity_emb.postprocess import check_dimensions, quantize_rows, shorten_rows
from infinity_emb.primitives import EmbeddingDtype

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
def test_short_rows_have_length_one_and_keep_their_direction(rows: Rows, data: st.DataObject) -> None:
    dimensions = data.draw(st.integers(1, rows.shape[1]))
    short = shorten_rows(rows, dimensions)

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
    assert shorten_rows(rows, 2).tolist() == [[0, 0], pytest.approx([0.6, 0.8])]


def test_nothing_is_done_where_nothing_is_cut() -> None:
    rows = np.array([[3, 4]], dtype=np.float32)
    assert shorten_rows(rows, None) is shorten_rows(rows, 2) is rows
    assert quantize_rows(rows, EmbeddingDtype.float32) is rows


def test_the_rows_that_were_given_are_left_as_they_are() -> None:
    rows = np.array([[3, 4, 5]], dtype=np.float32)
    shorten_rows(rows, 2)
    quantize_rows(rows, EmbeddingDtype.binary)
    assert rows.tolist() == [[3, 4, 5]]


@unhurried
@given(rows=ROWS)
def test_a_bit_is_set_where_a_value_is_above_zero_most_significant_first(rows: Rows) -> None:
    bits = quantize_rows(rows, EmbeddingDtype.ubinary)

    num_bytes = -(-rows.shape[1] // 8)
    assert (bits.shape, bits.dtype) == ((len(rows), num_bytes), np.uint8)
    for row, packed in zip(rows, bits, strict=True):
        text = "".join("1" if value > 0 else "0" for value in row).ljust(8 * num_bytes, "0")
        assert "".join(f"{byte:08b}" for byte in packed) == text


@unhurried
@given(rows=ROWS)
def test_binary_is_ubinary_minus_128(rows: Rows) -> None:
    unsigned = quantize_rows(rows, EmbeddingDtype.ubinary)
    signed = quantize_rows(rows, EmbeddingDtype.binary)

    assert signed.dtype == np.int8
    assert (signed.astype(int) == unsigned.astype(int) - 128).all()


@pytest.mark.model
@pytest.mark.parametrize("dtype", [EmbeddingDtype.binary, EmbeddingDtype.ubinary])
@pytest.mark.parametrize("dimension", [8, 32, 384])
def test_bits_are_those_of_sentence_transformers(dtype: EmbeddingDtype, dimension: int) -> None:
    from sentence_transformers.util.quantization import quantize_embeddings

    rows = np.random.default_rng(0).standard_normal((50, dimension), dtype=np.float32)
    rows[0] = 0
    expected = quantize_embeddings(rows, precision=dtype.value)
    ours = quantize_rows(rows, dtype)
    assert ours.dtype == expected.dtype
    assert (ours == expected).all()
