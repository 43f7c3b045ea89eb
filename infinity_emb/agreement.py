"""How near two answers to the same input are: numpy arrays of any shape, or a sparse row made into one.

And how near they have to be, where one of them is torch's in float32. Knows nothing of who answered.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from infinity_emb.backends.base import Rows, SparseRow
from infinity_emb.primitives import Dtype


class Bound(NamedTuple):
    """How far answers may be from torch's in float32.

    cosine: the least of vectors.
    difference: the most of any number, as a part of the largest in its answer or of 1.
    """

    cosine: float
    difference: float


# By the number format of whoever answers. Of float32, what another engine may add to torch's own rounding.
BOUNDS = {
    Dtype.float32.value: Bound(cosine=0.9999, difference=1e-4),
    Dtype.float16.value: Bound(cosine=0.999, difference=2e-2),
    Dtype.bfloat16.value: Bound(cosine=0.99, difference=1e-1),
    Dtype.int16.value: Bound(cosine=0.995, difference=1e-1),
    Dtype.int8.value: Bound(cosine=0.995, difference=1e-1),
    Dtype.fp8.value: Bound(cosine=0.99, difference=1e-1),
}


def difference(answer: Rows, expected: Rows) -> float:
    """The largest of any number, as a part of the largest that was expected or of 1.

    Infinite where the two cannot be compared.
    """
    if not _are_comparable(answer, expected):
        return float("inf")
    return float(np.abs(answer - expected).max(initial=0) / max(1.0, np.abs(expected).max(initial=0)))


def cosine(answer: Rows, expected: Rows) -> float:
    """The lowest of the rows'; 1 where both are 0, -1 where the two cannot be compared."""
    if not _are_comparable(answer, expected):
        return -1.0
    a, b = np.atleast_2d(answer).astype(np.float64), np.atleast_2d(expected).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = np.where(norms > 0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1), (a == b).all(axis=1))
    return float(cosines.min(initial=1))


def scattered(row: SparseRow, dimension: int) -> Rows:
    """A sparse row as (dimension,) float32."""
    values = np.zeros(dimension, dtype=np.float32)
    values[row.indices] = row.values
    return values


def _are_comparable(answer: Rows, expected: Rows) -> bool:
    is_finite = np.isfinite(answer).all() and np.isfinite(expected).all()
    return answer.shape == expected.shape and bool(is_finite)
