"""A text that is over a model's limit: one vector from its pieces' vectors. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infinity_emb.backends.base import Rows

# How far from 1 the length of a normalised vector may be.
_UNIT_TOLERANCE = 1e-3


def average_pieces(rows: Rows, counts: Sequence[int], weights: Sequence[int]) -> Rows:
    """Average each text's pieces by weight; scaled to length 1 where all pieces have that length.

    rows: (P, D) float32, the pieces of all texts in order.
    counts: pieces of each of the N texts; sums to P.
    weights: (P,), tokens of each piece.
    Returns (N, D) float32.
    """
    weighted = rows * np.asarray(weights, dtype=np.float32)[:, None]  # (P, D)
    starts = np.cumsum([0, *counts[:-1]])
    totals = np.add.reduceat(np.asarray(weights, dtype=np.float32), starts)  # (N,)
    averages: Rows = (np.add.reduceat(weighted, starts, axis=0) / totals[:, None]).astype(np.float32)
    if np.abs(np.linalg.norm(rows, axis=1) - 1).max() <= _UNIT_TOLERANCE:
        averages /= np.maximum(np.linalg.norm(averages, axis=1, keepdims=True), 1e-12)
    alone = np.asarray(counts) == 1
    averages[alone] = rows[starts[alone]]  # exactly what the text's own vector is
    return averages
