"""What happens to rows after the device: fewer dimensions, other number formats. Pure numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from infinity_emb.backends.base import Rows
from infinity_emb.errors import MatryoshkaDimError
from infinity_emb.primitives import EmbeddingDtype


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
    short = rows[:, :dimensions]  # (N, dimensions)
    norms = np.linalg.norm(short, axis=1, keepdims=True)  # (N, 1)
    scaled: Rows = np.divide(short, norms, out=np.zeros_like(short), where=norms > 0)
    return scaled


def quantize_rows(rows: Rows, dtype: EmbeddingDtype) -> npt.NDArray[Any]:
    """Rows in another number format.

    rows: (N, D) float32. float32 → itself; ubinary → (N, ceil(D / 8)) uint8, one bit a value, set where it
    is above 0, most significant bit first; binary → the same minus 128 as int8.
    Source: `quantize_embeddings` of sentence-transformers, precisions binary and ubinary.
    """
    if dtype is EmbeddingDtype.float32:
        return rows
    bits = np.packbits(rows > 0, axis=1)  # (N, ceil(D / 8)) uint8
    if dtype is EmbeddingDtype.ubinary:
        return bits
    return (bits.astype(np.int16) - 128).astype(np.int8)
