"""What a list of inputs was answered, by columns; and the same by inputs, as it is cached and shared.

Knows nothing of what computes, nor of where answers are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from infinity_emb.backends.base import Rows, SparseRow
from infinity_emb.primitives import OutputName


@dataclass(frozen=True, slots=True)
class Computed:
    """What one list of inputs was answered: columns with one entry per input, and tokens of each (N,)."""

    columns: Mapping[OutputName, Any]
    num_tokens: npt.NDArray[np.int64]


class Entry(NamedTuple):
    """What one input was answered. Whoever holds one does not change its arrays."""

    num_tokens: int
    # One per output that was asked for, in that order: (D,) or (n, D) float32, or a sparse row.
    values: tuple[Rows | SparseRow, ...]

    def copied(self) -> Entry:
        """The same in memory of its own."""
        return Entry(self.num_tokens, tuple(map(copy_of, self.values)))


def copy_of(value: Rows | SparseRow) -> Rows | SparseRow:
    """The same in memory of its own."""
    if isinstance(value, SparseRow):
        return SparseRow(value.indices.copy(), value.values.copy())
    return value.copy()


def entries_of(computed: Computed, outputs: Sequence[OutputName]) -> list[Entry]:
    """One per input; views of the columns."""
    columns = [computed.columns[name] for name in outputs]
    return list(map(Entry, computed.num_tokens.tolist(), zip(*columns, strict=True)))


def computed_of(entries: Sequence[Entry], outputs: Sequence[OutputName]) -> Computed:
    """Columns in memory of their own: callers change vectors in place."""
    return Computed(
        {name: _column([entry.values[at] for entry in entries]) for at, name in enumerate(outputs)},
        np.array([entry.num_tokens for entry in entries], dtype=np.int64),
    )


def _column(values: list[Rows | SparseRow]) -> Any:
    """Vectors become one (N, D) matrix; what differs in length stays a list."""
    if isinstance(values[0], np.ndarray) and values[0].ndim == 1:
        return np.concatenate(values).reshape(len(values), -1)
    return list(map(copy_of, values))
