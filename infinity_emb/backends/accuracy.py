"""Compare outputs with expected outputs of the same inputs.

`BOUNDS` holds every limit on the result, by purpose and dtype.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from infinity_emb.items import Float32Array, SparseVector

# What outputs are compared with. reference: sentence-transformers in float32. engine: torch in float32.
# batching: the same network on each input alone. weights: torch's network, only to detect weights of another
# model; vectors are centered. quantization: the same model before it was quantized; scores are centered.
Purpose: TypeAlias = Literal["reference", "engine", "batching", "weights", "quantization"]


class Accuracy(NamedTuple):
    """Difference between outputs and the expected ones.

    max_difference: of any value, relative to the largest expected value of the same output or to 1; infinite
    where an output is not finite or has another shape.
    min_cosine, mean_cosine: over all vectors; None for scores, and min_cosine where only the mean is known.
    """

    max_difference: float
    min_cosine: float | None = None
    mean_cosine: float | None = None

    def __str__(self) -> str:
        difference = f"difference {self.max_difference:.0e}"
        return difference if self.min_cosine is None else f"cosine {self.min_cosine:.7f}, {difference}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Limits on an `Accuracy`; by default each one always holds.

    max_difference applies to vectors, max_score_difference to scores.
    """

    min_cosine: float = -1.0
    min_mean_cosine: float = -1.0
    max_difference: float = math.inf
    max_score_difference: float = math.inf

    def find_violation(self, found: Accuracy) -> str:
        """Describe a limit that does not hold, as a phrase to follow the engine's name; "" if all hold."""
        limit = self.max_score_difference if found.mean_cosine is None else self.max_difference
        if not found.max_difference <= limit:
            return f"differs from torch by {found.max_difference:.0e}, the limit is {limit:.0e}"
        if found.min_cosine is not None and not found.min_cosine >= self.min_cosine:
            return (
                f"has a cosine of {found.min_cosine:.5f} to torch's vectors, the limit is {self.min_cosine}"
            )
        if found.mean_cosine is not None and not found.mean_cosine >= self.min_mean_cosine:
            return (
                f"has a mean cosine of {found.mean_cosine:.2f} to torch's token vectors, the limit is"
                f" {self.min_mean_cosine}"
            )
        return ""

    def holds(self, found: Accuracy) -> bool:
        """Tell whether every limit holds."""
        return not self.find_violation(found)


def _bound_all(min_cosine: float, difference: float) -> Bound:
    return Bound(min_cosine=min_cosine, max_difference=difference, max_score_difference=difference)


def _bound_batching(cosine_distance: float, score_difference: float) -> Bound:
    return Bound(min_cosine=1 - cosine_distance, max_score_difference=score_difference)


# The float32 bound allows another library's rounding in addition to torch's own.
_ENGINE = {
    "float32": _bound_all(0.9999, 1e-4),
    "float16": _bound_all(0.999, 2e-2),
    "bfloat16": _bound_all(0.99, 1e-1),
    "int16": _bound_all(0.995, 1e-1),
    "int8": _bound_all(0.995, 1e-1),
    "fp8": _bound_all(0.99, 1e-1),
}
# Quantization changes every value, so these bounds only detect weights of another model. For
# all-MiniLM-L6-v2, 8-bit files have a mean cosine of 0.82 to 0.99, 4-bit files 0.84; its layers in another
# order have 0.31, and another network 0.01.
_WEIGHTS = Bound(min_mean_cosine=0.95, max_score_difference=0.2)
# Lower than for an engine that `--engine auto` chooses, since the user has requested this dtype. A vector
# that is zero or not finite is refused however good the mean is.
_QUANTIZATION = Bound(min_mean_cosine=0.99, min_cosine=1e-12)

BOUNDS: Mapping[Purpose, Mapping[str, Bound]] = {
    "reference": {
        **_ENGINE,
        "float32": Bound(min_cosine=0.99999, max_difference=2e-5, max_score_difference=1e-5),
    },
    "engine": _ENGINE,
    # Rounding stays far below these limits, and a wrong mask far above.
    "batching": {
        "float32": _bound_batching(1e-6, 1e-4),
        "float16": _bound_batching(1e-3, 2e-2),
        "bfloat16": _bound_batching(1e-2, 1e-1),
        "int16": _bound_batching(1e-3, 2e-2),
        "int8": _bound_batching(3e-2, 2e-1),
    },
    "weights": {"float32": _WEIGHTS, "int8": Bound(min_mean_cosine=0.5, max_score_difference=0.5)},
    "quantization": {"float32": _QUANTIZATION},
}


def find_bound(purpose: Purpose, dtype: str) -> Bound:
    """Return the bound for outputs in `dtype`; a dtype that is not in the table gets the one of float32."""
    bounds = BOUNDS[purpose]
    return bounds.get(dtype, bounds["float32"])


def compare(
    outputs: Sequence[Float32Array | SparseVector],
    expected: Sequence[Float32Array | SparseVector],
    *,
    are_scores: bool = False,
    min_scale: float = 1.0,
) -> Accuracy:
    """Compare each output with the expected one; the worst value counts, and the mean over all vectors.

    outputs, expected: for each input, (D,) or (n, D) float32, or a sparse vector.
    min_scale: the least value that differences are relative to; 0 for scores that may all be small.
    """
    pairs = [to_dense_all(pair) for pair in zip(outputs, expected, strict=True)]
    difference = max((_max_difference(a, b, min_scale) for a, b in pairs), default=0.0)
    if are_scores:
        return Accuracy(difference)
    cosines = [cosine for a, b in pairs for cosine in _cosines(a, b)] or [1.0]
    return Accuracy(difference, min(cosines), float(np.mean(cosines)))


def center(vectors: Float32Array) -> Float32Array:
    """Remove the mean vector, and then each vector's mean, both of which reveal little about the weights.

    vectors: (T, D).
    """
    vectors = vectors - vectors.mean(axis=0)
    return np.asarray(vectors - vectors.mean(axis=1, keepdims=True))


def to_dense(vector: SparseVector, dimension: int) -> Float32Array:
    """Return a sparse vector as (dimension,) float32."""
    values = np.zeros(dimension, dtype=np.float32)
    values[vector.indices] = vector.values
    return values


def to_dense_all(outputs: Sequence[Float32Array | SparseVector], *, min_width: int = 1) -> list[Float32Array]:
    """Return sparse vectors as dense ones of one width, and other outputs unchanged."""
    sparse = [each for each in outputs if isinstance(each, SparseVector)]
    width = max([min_width, *(1 + int(each.indices.max(initial=0)) for each in sparse)])
    return [to_dense(each, width) if isinstance(each, SparseVector) else each for each in outputs]


def _max_difference(output: Float32Array, expected: Float32Array, min_scale: float) -> float:
    """Return infinity if shapes differ or values are not finite, or if the scale is 0."""
    if not _are_comparable(output, expected):
        return math.inf
    scale = max(min_scale, float(np.abs(expected).max(initial=0)))
    # float32 would round more than the two differ.
    difference = float(np.abs(output.astype(np.float64) - expected).max(initial=0))
    return difference / scale if scale else math.inf


def _cosines(output: Float32Array, expected: Float32Array) -> list[float]:
    """Return the cosine of each vector: 1 if both are 0, -1 if the two cannot be compared."""
    if not _are_comparable(output, expected):
        return [-1.0] * len(np.atleast_2d(output))
    a, b = np.atleast_2d(output).astype(np.float64), np.atleast_2d(expected).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.where(norms > 0, norms, 1)
    return [float(cosine) for cosine in np.where(norms > 0, cosines, (a == b).all(axis=1))]


def _are_comparable(output: Float32Array, expected: Float32Array) -> bool:
    is_finite = np.isfinite(output).all() and np.isfinite(expected).all()
    return output.shape == expected.shape and bool(is_finite)
