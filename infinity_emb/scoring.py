"""How similar a query's vector is to documents' vectors. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infinity_emb.backends.base import Rows, SparseRow


def cosine_scores(query: Rows, documents: Rows) -> Rows:
    """(D,) and (N, D) float32 → (N,) float32; 0 where a vector is 0."""
    norms = np.linalg.norm(documents, axis=1) * np.linalg.norm(query)  # (N,)
    scores: Rows = np.divide(documents @ query, norms, out=np.zeros_like(norms), where=norms > 0)
    return scores


def sparse_scores(query: SparseRow, documents: Sequence[SparseRow]) -> Rows:
    """The dot product of a sparse vector with each of N others, (N,) float32."""
    return np.array([_dot(query, document) for document in documents], dtype=np.float32)


def _dot(a: SparseRow, b: SparseRow) -> float:
    _, in_a, in_b = np.intersect1d(a.indices, b.indices, assume_unique=True, return_indices=True)
    return float(a.values[in_a] @ b.values[in_b])
