"""Decide whether a faster way to compute a model may replace the current one unless the user objects.

A cosine says nothing about decisions, so the rule looks at scores, and at the orders and labels that follow
from them: those of the similarities between texts, of a query's documents, or of a text's labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from infinity_emb.backends.accuracy import to_dense_all
from infinity_emb.items import Float32Array, SparseVector
from infinity_emb.types import ModelKind

Float64Array: TypeAlias = npt.NDArray[np.float64]
Outputs: TypeAlias = Sequence[Float32Array | SparseVector]

# Absolute for scores up to 1, and relative to the largest for raw ones.
MAX_SCORE_CHANGE = 0.02
# Two libraries that compute the same in float32 differ in a score by up to this.
FLOAT32_NOISE = 1e-5
_NUM_TOP = 10


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores by which clients decide.

    rows: (n,) each, compared within the row only: one text's similarities to the others, the scores of one
    query's documents, or the probabilities of one text's labels.
    are_labels: whether only the highest score of a row matters, instead of the order.
    """

    rows: tuple[Float64Array, ...]
    are_labels: bool = False


class Change(NamedTuple):
    """Difference between the scores of two ways to compute the same model.

    max_change, mean_change: of any score; infinite if one is not finite or missing.
    num_reorders: pairs of scores whose order changed, or labels that changed.
    widest_margin: the largest former difference of two scores whose order changed.
    mean_rank, lowest_rank: Spearman's correlation over the rows; 1 for labels that stayed, else 0.
    top_overlap: mean share of a row's ten highest that are still among the ten highest.
    """

    max_change: float
    mean_change: float
    num_reorders: int
    widest_margin: float
    mean_rank: float
    lowest_rank: float
    top_overlap: float

    def __str__(self) -> str:
        return (
            f"scores move by up to {self.max_change:.1e}, rank correlation {self.mean_rank:.4f} (lowest"
            f" {self.lowest_rank:.4f}), {self.top_overlap:.0%} of the top {_NUM_TOP} stay"
        )


_INCOMPARABLE = Change(math.inf, math.inf, 0, math.inf, -1.0, -1.0, 0.0)
_EQUAL = Change(0.0, 0.0, 0, 0.0, 1.0, 1.0, 1.0)


def make_scores(
    outputs: Outputs,
    kind: ModelKind,
    activate: Callable[[Float32Array], Float32Array],
    *,
    num_outputs: int = 1,
) -> Scores:
    """Return the scores that follow from a model's outputs.

    outputs: for each text, (D,) or (n, D) or sparse vectors; raw scores (L,) of rerankers and classifiers.
    activate: (N, L) raw scores → scores.
    num_outputs: outputs of each text; all values of one name precede those of the next. Texts are compared
        within a name.
    """
    if kind in (ModelKind.reranker, ModelKind.classifier):
        values = activate(np.stack([np.ravel(output) for output in to_dense_all(outputs)])).astype(np.float64)
        is_classifier = kind is ModelKind.classifier
        return Scores(tuple(values) if is_classifier else tuple(values.T), are_labels=is_classifier)
    num_texts = len(outputs) // num_outputs
    parts = [outputs[start : start + num_texts] for start in range(0, len(outputs), num_texts)]
    return Scores(tuple(row for part in parts for row in compare_texts(part)))


def compare_texts(outputs: Outputs) -> tuple[Float64Array, ...]:
    """Return (N - 1,) for each text: its similarities to the others, by cosine or late interaction."""
    vectors = [_normalize(output) for output in to_dense_all(outputs)]
    if all(len(each) == 1 for each in vectors):
        table = np.concatenate(vectors)
        similarities = table @ table.T  # (N, N)
    else:
        similarities = np.array([[_interact(query, document) for document in vectors] for query in vectors])
    others = ~np.eye(len(vectors), dtype=bool)
    return tuple(row[kept] for row, kept in zip(similarities, others, strict=True))


def measure_change(new: Scores, old: Scores) -> Change:
    """Compare the scores of two ways to compute the same texts."""
    if [row.shape for row in new.rows] != [row.shape for row in old.rows]:
        return _INCOMPARABLE
    if not all(np.isfinite(row).all() for row in (*new.rows, *old.rows)):
        return _INCOMPARABLE
    pairs = [(a, b) for a, b in zip(new.rows, old.rows, strict=True) if a.size]
    if not pairs:
        return _EQUAL
    scale = max(1.0, *(float(np.abs(before).max()) for _, before in pairs))
    moved = np.concatenate([np.abs(after - before) for after, before in pairs]) / scale
    find_margins = _find_label_margins if old.are_labels else _find_order_margins
    margins = [margin / scale for after, before in pairs for margin in find_margins(after, before)]
    ranks = [_correlate(after, before, are_labels=old.are_labels) for after, before in pairs]
    return Change(
        max_change=float(moved.max()),
        mean_change=float(moved.mean()),
        num_reorders=len(margins),
        widest_margin=max(margins, default=0.0),
        mean_rank=float(np.mean(ranks)),
        lowest_rank=min(ranks),
        top_overlap=float(np.mean([_measure_top_overlap(after, before) for after, before in pairs])),
    )


def find_objection(new: Scores, old: Sequence[Scores], reference: Scores | None = None) -> str:
    """Return why a new way to compute must not replace the current one; "" if it may.

    It may if no score moves by more than 0.02 and every order or label that changes was within the noise of
    the current way: the two scores were no further apart than other texts in a batch can move them. It also
    may if it is at least as close to float32 as the current way.

    old: scores of the current way in one or more batchings, whose differences are its noise.
    reference: scores in float32; None if unknown.
    """
    noise = measure_noise(old)
    change = measure_change(new, old[0])
    if change.max_change <= MAX_SCORE_CHANGE and change.widest_margin <= 2 * noise:
        return ""
    if reference is not None and _is_as_close(new, old, reference):
        return ""
    if not change.max_change <= MAX_SCORE_CHANGE:
        return f"moves a score by {change.max_change:.1e}, the limit is {MAX_SCORE_CHANGE}"
    return (
        f"changes {change.num_reorders} orders or labels, of scores up to {change.widest_margin:.1e} apart,"
        f" and the noise is {noise:.1e}"
    )


def measure_noise(batchings: Sequence[Scores]) -> float:
    """Return how far the other texts of a batch move a score, at least float32's rounding."""
    changes = [measure_change(each, batchings[0]).max_change for each in batchings[1:]]
    return max(FLOAT32_NOISE, *changes) if changes else FLOAT32_NOISE


def _is_as_close(new: Scores, old: Sequence[Scores], reference: Scores) -> bool:
    found = measure_change(new, reference)
    current = [measure_change(each, reference) for each in old]
    return found.max_change <= max(each.max_change for each in current) < math.inf and (
        found.mean_change <= max(each.mean_change for each in current)
    )


def _find_order_margins(after: Float64Array, before: Float64Array) -> Iterator[float]:
    """Yield the former difference of each pair of scores that changed order or became equal."""
    first, second = np.triu_indices(len(before), 1)
    margins = before[first] - before[second]
    has_changed = (margins != 0) & (margins * (after[first] - after[second]) <= 0)
    yield from np.abs(margins[has_changed]).tolist()


def _find_label_margins(after: Float64Array, before: Float64Array) -> Iterator[float]:
    if after.argmax() != before.argmax():
        yield float(before.max() - before[after.argmax()])


def _correlate(after: Float64Array, before: Float64Array, *, are_labels: bool) -> float:
    if are_labels:
        return float(after.argmax() == before.argmax())
    return correlate_ranks(after, before)


def correlate_ranks(after: Float64Array, before: Float64Array) -> float:
    """Return Spearman's correlation of two rows, 1 for equal rows; equal values share a rank."""
    ranks = [_rank(row) for row in (after, before)]
    if np.array_equal(ranks[0], ranks[1]):
        return 1.0
    centered = [rank - rank.mean() for rank in ranks]
    length = float(np.linalg.norm(centered[0]) * np.linalg.norm(centered[1]))
    return float(centered[0] @ centered[1]) / length if length else 0.0


def _rank(row: Float64Array) -> Float64Array:
    """Return (n,), the mean rank of equal values."""
    _, inverse, counts = np.unique(row, return_inverse=True, return_counts=True)
    mean_ranks: Float64Array = np.cumsum(counts) - (counts - 1) / 2
    return mean_ranks[inverse]


def _measure_top_overlap(after: Float64Array, before: Float64Array) -> float:
    """Return the share of the ten highest scores that stay there; ties with the tenth count."""
    num_top = min(_NUM_TOP, len(before))
    chosen = np.argsort(-after, kind="stable")[:num_top]
    return float(np.mean(before[chosen] >= np.sort(before)[-num_top]))


def _normalize(vectors: Float32Array) -> Float64Array:
    """Return (n, D) with rows of length 1, or 0."""
    rows = np.atleast_2d(vectors).astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    normalized: Float64Array = rows / np.where(norms > 0, norms, 1)
    return normalized


def _interact(query: Float64Array, document: Float64Array) -> float:
    """Return the mean, over the query's vectors, of the best cosine among the document's."""
    return float((query @ document.T).max(axis=1, initial=-1.0).mean()) if len(query) else 0.0
