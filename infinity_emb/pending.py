"""What waits for a device: requests, their items, and where an item's answers go.

A request ends once, in the columns of all its items or in the first error. Knows nothing of threads, devices
or event loops; the worker calls it under a lock where it says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from infinity_emb.backends.base import Answers, Column, Encoded, Rows, SparseRow
from infinity_emb.errors import BackendFailed
from infinity_emb.fairness import Flow
from infinity_emb.primitives import OutputName

_NOBODY = Flow()


class PendingRequest:
    """The answer to one request while it is being computed.

    on_done is called once, on whichever thread ends the request: after the last row, or after the first
    error; it must not raise. `columns` holds one entry per item and output once `error` is None and it is
    done.
    """

    __slots__ = (
        "_num_missing",
        "columns",
        "error",
        "flow",
        "is_cancelled",
        "num_items",
        "on_done",
        "on_progress",
    )

    def __init__(
        self,
        num_items: int,
        on_done: Callable[[PendingRequest], None],
        on_progress: Callable[[int], None] | None = None,
        *,
        flow: Flow = _NOBODY,
    ) -> None:
        self.columns: dict[OutputName, Any] = {}  # (num_items, D) float32, or a list of num_items arrays
        self.error: Exception | None = None
        self.flow = flow
        self.is_cancelled = False
        self.on_done = on_done
        self.on_progress = on_progress
        self.num_items = num_items
        self._num_missing = num_items

    def cancel(self) -> None:
        """Drop what still waits; `on_done` is not called, unless that call is under way already."""
        self.is_cancelled = True

    def count_rows(self, num_rows: int) -> bool:
        """Note that rows arrived; true when they were the last. Called under the pool's lock."""
        self._num_missing -= num_rows
        return self._num_missing == 0 and not self.is_cancelled

    def set_error(self, error: Exception) -> None:
        """Note the error and drop the rest. Called under the pool's lock, not for a cancelled request."""
        self.error = error
        self.is_cancelled = True


@dataclass(slots=True, eq=False)
class Item:
    """One input that waits, and the row of its request that it fills.

    is_answered: it ended, in a row or an exception; written under the pool's lock, once.
    """

    encoded: Encoded
    request: PendingRequest
    row: int
    num_tokens: int = field(init=False)
    is_answered: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.num_tokens = self.encoded.num_tokens

    @property
    def is_cancelled(self) -> bool:
        return self.request.is_cancelled

    @property
    def flow(self) -> Flow:
        return self.request.flow

    def store(self, answers: Answers, position: int, lock: AbstractContextManager[Any]) -> None:
        """Copy what stands at `position` of the answers, each output into its column of the request.

        Raises BackendFailed for rows of another length than the request's others.
        """
        request = self.request
        for name in self.encoded.recipe.outputs:
            column = answers[name]
            if name not in request.columns:
                with lock:
                    request.columns.setdefault(name, _empty_column(column, request.num_items))
            target = request.columns[name]
            if isinstance(column, np.ndarray) and column.shape[1:] != target.shape[1:]:
                raise BackendFailed(f"got {column.shape[1]} values from the backend after {target.shape[1]}")
            # A matrix's row is copied where it goes.
            target[self.row] = (
                column[position] if isinstance(column, np.ndarray) else _copy_of(column[position])
            )


def encoded_of(items: Sequence[Item]) -> list[Encoded]:
    """What the device takes of each."""
    return [item.encoded for item in items]


def unanswered(items: Sequence[Item]) -> list[Item]:
    """Those whose answer somebody still waits for."""
    return [item for item in items if not (item.is_answered or item.is_cancelled)]


def mark_answered(items: Sequence[Item]) -> list[Item]:
    """Those that end now, and not before. Called under the pool's lock."""
    ending = [item for item in items if not item.is_answered]
    for item in ending:
        item.is_answered = True
    return ending


def chosen(batch: Sequence[Item], is_chosen: npt.NDArray[np.bool_]) -> list[Item]:
    """is_chosen: (B,)."""
    return [batch[position] for position in np.flatnonzero(is_chosen).tolist()]


def _empty_column(column: Column, num_items: int) -> Any:
    """Room for one output of a whole request."""
    if isinstance(column, np.ndarray):
        return np.empty((num_items, column.shape[1]), dtype=np.float32)
    return [None] * num_items


def _copy_of(entry: Rows | SparseRow) -> Rows | SparseRow:
    """An entry of a list; it may be a view that keeps the memory of its whole batch."""
    if isinstance(entry, SparseRow):
        return SparseRow(entry.indices.copy(), entry.values.copy())
    return entry.copy()
