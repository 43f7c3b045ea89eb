"""Decide which tokens of a pair are kept if it exceeds the limit: the longer text is truncated first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Counts = tuple[int, int]  # tokens of the first and of the second text, special tokens excluded


def divide_tokens(counts: Counts, num_kept: int, count_whole: Callable[[], Counts]) -> Counts:
    """Return how many tokens of each text are kept, `num_kept` in total.

    If both texts are truncated, each keeps half, and the longer one keeps the odd token.

    counts: tokens of each text, or of a beginning that is longer than what can be kept.
    count_whole: return the token counts of the whole texts; called only if the odd token depends on them.
    """
    first, second = counts
    if 2 * min(counts) <= num_kept:
        return (first, num_kept - first) if first <= second else (num_kept - second, second)
    half = num_kept // 2
    if num_kept % 2:
        first, second = count_whole()
    return (num_kept - half, half) if first > second else (half, num_kept - half)


def find_kept_indices(
    special_tokens_mask: Sequence[int], counts: Counts, kept: Counts, side: str
) -> npt.NDArray[np.intp]:
    """Return the indices of all special tokens and of the kept tokens of each text, ascending.

    special_tokens_mask: (n,), 1 for a special token; the first text's tokens precede the second's.
    side: the side on which each text is truncated, "left" or "right".
    """
    is_kept = np.array(special_tokens_mask) == 1  # (n,)
    indices_by_text = np.split(np.flatnonzero(~is_kept), [counts[0]])
    for indices, count in zip(indices_by_text, kept, strict=True):
        is_kept[indices[:count] if side == "right" else indices[len(indices) - count :]] = True
    return np.flatnonzero(is_kept)
