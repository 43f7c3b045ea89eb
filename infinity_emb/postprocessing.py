"""Post-process the outputs of a backend: dimensions, dtypes, similarity scores. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from infinity_emb.errors import MatryoshkaDimError
from infinity_emb.items import Float32Array, SparseVector
from infinity_emb.types import EmbeddingDtype

# How far from 1 the norm of a normalized vector may be.
_UNIT_TOLERANCE = 1e-3
_LARGEST_FLOAT16 = np.finfo(np.float16).max


@dataclass(frozen=True, slots=True)
class QuantizationRanges:
    """Value range of each dimension, which int8 and uint8 divide into steps.

    low, high: (D,) float32; low <= high.
    """

    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]


def check_dimensions(dimensions: int | None, embedding_dimension: int) -> None:
    """Raise MatryoshkaDimError unless `dimensions` is None or in 1..embedding_dimension."""
    if dimensions is not None and not 1 <= dimensions <= embedding_dimension:
        raise MatryoshkaDimError(
            f"dimensions={dimensions} is not in a valid range. Select between 1 and {embedding_dimension},"
            " or leave it out for the full vector."
        )


def truncate_dimensions(vectors: Float32Array, dimensions: int | None) -> Float32Array:
    """Keep the first `dimensions` values of each vector and rescale it to length 1.

    vectors: (N, D) float32. Returns (N, dimensions) float32, or `vectors` itself if nothing is cut.
    Source: Kusupati et al. 2022, https://arxiv.org/abs/2205.13147; rescaled as OpenAI's `dimensions` does.
    """
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    return normalize(vectors[:, :dimensions])


def normalize(vectors: Float32Array) -> Float32Array:
    """Scale each of (N, D) float32 vectors to length 1; a zero vector stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)  # (N, 1)
    scaled: Float32Array = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return scaled


def compute_ranges(vectors: Float32Array) -> QuantizationRanges:
    """Return the smallest and the largest value of each dimension.

    vectors: (N, D) float32, N >= 1, of calibration texts. Ranges of a request's own vectors would make the
    quantized vector of a text depend on the other texts of its request.
    """
    return QuantizationRanges(low=vectors.min(axis=0), high=vectors.max(axis=0))


def quantize_vectors(
    vectors: Float32Array, dtype: EmbeddingDtype, ranges: QuantizationRanges | None = None
) -> npt.NDArray[Any]:
    """Convert vectors to another dtype; the input is not modified.

    vectors: (N, D) float32.
    ranges: required by int8 and uint8; computed from vectors with the same D.

    float32 → `vectors` itself.
    float16 → (N, D) float16; values beyond its range become its largest finite number.
    uint8 → (N, D) uint8: each range divided into 255 steps, counted from 0. Values outside a range are
    clipped, as in sentence-transformers 6.2 (earlier versions let them wrap around).
    int8 → uint8 minus 128, as int8.
    ubinary → (N, ceil(D / 8)) uint8: one bit per value, set if it is positive, most significant bit first.
    binary → ubinary minus 128, as int8.
    Source: `quantize_embeddings` of sentence-transformers 6.2 for all but float16.
    """
    if dtype is EmbeddingDtype.float32:
        return vectors
    if dtype is EmbeddingDtype.float16:
        return vectors.clip(-_LARGEST_FLOAT16, _LARGEST_FLOAT16).astype(np.float16)
    if dtype in (EmbeddingDtype.int8, EmbeddingDtype.uint8):
        assert ranges is not None, f"{dtype} needs the ranges of calibration vectors"
        steps = _quantize_to_steps(vectors, ranges)  # (N, D) float32, integers in 0..255
        return steps.astype(np.uint8) if dtype is EmbeddingDtype.uint8 else (steps - 128).astype(np.int8)
    bits = np.packbits(vectors > 0, axis=1)  # (N, ceil(D / 8)) uint8
    if dtype is EmbeddingDtype.ubinary:
        return bits
    return (bits.astype(np.int16) - 128).astype(np.int8)


def _quantize_to_steps(vectors: Float32Array, ranges: QuantizationRanges) -> Float32Array:
    """Return the step of each value, 0..255; in float32 throughout, like the source."""
    assert vectors.shape[1:] == ranges.low.shape, f"{vectors.shape[1]} dimensions, {len(ranges.low)} ranges"
    sizes = (ranges.high - ranges.low) / 255  # (D,)
    sizes[sizes == 0] = 1  # a constant dimension, or one too narrow for 255 float32 steps
    steps: Float32Array = vectors - ranges.low  # (N, D)
    with np.errstate(over="ignore"):  # a value far outside a very narrow range: inf, clipped below
        steps /= sizes
    np.floor(steps, out=steps)
    return steps.clip(0, 255, out=steps)


def cosine_scores(query: Float32Array, documents: Float32Array) -> Float32Array:
    """Return the (N,) float32 cosines of (D,) and (N, D) vectors; 0 if either vector is zero."""
    norms = np.linalg.norm(documents, axis=1) * np.linalg.norm(query)  # (N,)
    scores: Float32Array = np.divide(documents @ query, norms, out=np.zeros_like(norms), where=norms > 0)
    return scores


def sparse_scores(query: SparseVector, documents: Sequence[SparseVector]) -> Float32Array:
    """Return the (N,) float32 dot products of a sparse vector with N others."""
    return np.array([_dot(query, document) for document in documents], dtype=np.float32)


def _dot(a: SparseVector, b: SparseVector) -> float:
    _, in_a, in_b = np.intersect1d(a.indices, b.indices, assume_unique=True, return_indices=True)
    return float(a.values[in_a] @ b.values[in_b])


def average_pieces(vectors: Float32Array, counts: Sequence[int], weights: Sequence[int]) -> Float32Array:
    """Average the vectors of each text's pieces by weight; rescale to length 1 if all of them have length 1.

    vectors: (P, D) float32, the pieces of all texts in order.
    counts: number of pieces of each of the N texts; sums to P.
    weights: (P,), tokens of each piece.
    Returns (N, D) float32.
    """
    weighted = vectors * np.asarray(weights, dtype=np.float32)[:, None]  # (P, D)
    starts = np.cumsum([0, *counts[:-1]])
    totals = np.add.reduceat(np.asarray(weights, dtype=np.float32), starts)  # (N,)
    averages: Float32Array = (np.add.reduceat(weighted, starts, axis=0) / totals[:, None]).astype(np.float32)
    is_unit = np.abs(np.linalg.norm(vectors, axis=1) - 1) <= _UNIT_TOLERANCE  # (P,)
    rescaled = np.logical_and.reduceat(is_unit, starts)  # (N,)
    averages[rescaled] /= np.maximum(np.linalg.norm(averages[rescaled], axis=1, keepdims=True), 1e-12)
    is_whole = np.asarray(counts) == 1
    averages[is_whole] = vectors[starts[is_whole]]  # exactly the text's own vector
    return averages
