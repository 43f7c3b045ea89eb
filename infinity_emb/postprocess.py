"""What happens to rows after the device: fewer dimensions, other number formats. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from infinity_emb.backends.base import Rows
from infinity_emb.errors import MatryoshkaDimError
from infinity_emb.primitives import EmbeddingDtype

_LARGEST_FLOAT16 = np.finfo(np.float16).max


@dataclass(frozen=True, slots=True)
class Ranges:
    """Between which values each dimension is cut into steps.

    low, high: (D,) float32; low <= high.
    """

    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]


def check_dimensions(dimensions: int | None, embedding_dimension: int) -> None:
    """Raises MatryoshkaDimError unless `dimensions` is None or in 1..embedding_dimension."""
    if dimensions is not None and not 1 <= dimensions <= embedding_dimension:
        raise MatryoshkaDimError(
            f"dimensions={dimensions} is not in a valid range. Select between 1 and {embedding_dimension},"
            " or leave it out for the full vector."
        )


def shorten_rows(rows: Rows, dimensions: int | None) -> Rows:
    """Keep the first `dimensions` values of each row and scale it back to length 1.

    rows: (N, D) float32. Returns (N, dimensions) float32, or `rows` itself where nothing is cut.
    Source: Kusupati et al. 2022, https://arxiv.org/abs/2205.13147; scaling as OpenAI's `dimensions` does.
    """
    if dimensions is None or dimensions == rows.shape[1]:
        return rows
    return unit_rows(rows[:, :dimensions])


def unit_rows(rows: Rows) -> Rows:
    """(N, D) float32, each row scaled to length 1; a row of zeros stays one."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)  # (N, 1)
    scaled: Rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return scaled


def find_ranges(rows: Rows) -> Ranges:
    """The smallest and the largest value of each dimension.

    rows: (N, D) float32, N at least 1; of calibration texts, never of the request that is answered: the same
    text would get other numbers in other company.
    """
    return Ranges(low=rows.min(axis=0), high=rows.max(axis=0))


def quantize_rows(rows: Rows, dtype: EmbeddingDtype, ranges: Ranges | None = None) -> npt.NDArray[Any]:
    """Rows in another number format.

    rows: (N, D) float32; left as they are.
    ranges: needed by int8 and uint8 alone, of rows that were shortened to the same D.

    float32 → itself.
    float16 → (N, D) float16; what is beyond its range becomes its largest finite number.
    uint8 → (N, D) uint8: `ranges` cut into 255 steps, numbered from 0. A value below them is clipped to 0 and
    one above them to 255, as sentence-transformers 6.2 does; its earlier cast let them wrap around.
    int8 → the same minus 128 as int8.
    ubinary → (N, ceil(D / 8)) uint8, one bit a value, set where it is above 0, most significant bit first.
    binary → the same minus 128 as int8.
    Source: `quantize_embeddings` of sentence-transformers 6.2 for all but float16.
    """
    if dtype is EmbeddingDtype.float32:
        return rows
    if dtype is EmbeddingDtype.float16:
        return rows.clip(-_LARGEST_FLOAT16, _LARGEST_FLOAT16).astype(np.float16)
    if dtype in (EmbeddingDtype.int8, EmbeddingDtype.uint8):
        assert ranges is not None, f"{dtype} needs the ranges of calibration rows"
        steps = _number_steps(rows, ranges)  # (N, D) float32, whole numbers in 0..255
        return steps.astype(np.uint8) if dtype is EmbeddingDtype.uint8 else (steps - 128).astype(np.int8)
    bits = np.packbits(rows > 0, axis=1)  # (N, ceil(D / 8)) uint8
    if dtype is EmbeddingDtype.ubinary:
        return bits
    return (bits.astype(np.int16) - 128).astype(np.int8)


def _number_steps(rows: Rows, ranges: Ranges) -> Rows:
    """Which of the 255 steps each value is in; in float32 throughout, as the source computes."""
    assert rows.shape[1:] == ranges.low.shape, f"{rows.shape[1]} dimensions, ranges of {len(ranges.low)}"
    sizes = (ranges.high - ranges.low) / 255  # (D,)
    sizes[sizes == 0] = 1  # a constant dimension, or one too narrow for 255 float32 steps
    steps: Rows = rows - ranges.low  # (N, D)
    with np.errstate(over="ignore"):  # a value far outside of a very narrow dimension: inf, clipped below
        steps /= sizes
    np.floor(steps, out=steps)
    return steps.clip(0, 255, out=steps)
