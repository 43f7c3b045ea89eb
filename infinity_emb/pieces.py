"""A text that is over a model's limit: its pieces, and one vector from theirs. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from infinity_emb.backends.base import Piece, Rows
from infinity_emb.errors import BadInput

# Of one request: each piece is computed as a text of its own is, however short it is.
MAX_PIECES = 2048
# How far from 1 the length of a normalised vector may be.
_UNIT_TOLERANCE = 1e-3


def split_texts(texts: Sequence[str], split: Callable[[str], list[Piece]]) -> list[list[Piece]]:
    """The pieces of each text. Raises BadInput once they are too many, before the rest is split."""
    pieces: list[list[Piece]] = []
    num_pieces = 0
    for text in texts:
        pieces.append(split(text))
        num_pieces += len(pieces[-1])
        check_num_pieces(num_pieces, len(texts))
    return pieces


def check_num_pieces(num_pieces: int, num_texts: int) -> None:
    """Raises BadInput for more than the limit; texts that are not cut have none."""
    if num_pieces > max(MAX_PIECES, num_texts):
        raise BadInput(
            f"the request would be cut into {num_pieces} pieces or more, the limit is {MAX_PIECES};"
            " send fewer or shorter texts at once, or ask for larger pieces or none"
        )


def average_pieces(rows: Rows, counts: Sequence[int], weights: Sequence[int]) -> Rows:
    """Average each text's pieces by weight; scaled to length 1 where all of its pieces have that length.

    rows: (P, D) float32, the pieces of all texts in order.
    counts: pieces of each of the N texts; sums to P.
    weights: (P,), tokens of each piece.
    Returns (N, D) float32.
    """
    weighted = rows * np.asarray(weights, dtype=np.float32)[:, None]  # (P, D)
    starts = np.cumsum([0, *counts[:-1]])
    totals = np.add.reduceat(np.asarray(weights, dtype=np.float32), starts)  # (N,)
    averages: Rows = (np.add.reduceat(weighted, starts, axis=0) / totals[:, None]).astype(np.float32)
    is_unit = np.abs(np.linalg.norm(rows, axis=1) - 1) <= _UNIT_TOLERANCE  # (P,)
    scaled = np.logical_and.reduceat(is_unit, starts)  # (N,)
    averages[scaled] /= np.maximum(np.linalg.norm(averages[scaled], axis=1, keepdims=True), 1e-12)
    alone = np.asarray(counts) == 1
    averages[alone] = rows[starts[alone]]  # exactly what the text's own vector is
    return averages
