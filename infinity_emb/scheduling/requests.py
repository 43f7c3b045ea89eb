"""Requests that wait for a worker thread, and their items.

A request ends once: with the outputs of all its items, or with the first error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from infinity_emb.errors import BackendFailed
from infinity_emb.items import BatchOutputs, Encoded, Output, copy_value, count_value_bytes
from infinity_emb.scheduling.fair_queue import Flow
from infinity_emb.scheduling.stages import RequestStages
from infinity_emb.types import OutputName

_DEFAULT_FLOW = Flow()


class PendingRequest:
    """The outputs of one request while they are being computed.

    on_done: called once, on the thread that ends the request, after the last output or the first error; it
        must not raise. Not called for a cancelled request.
    on_progress: called with the number of items that a batch has completed.
    on_outputs: called with the size of their outputs in bytes.
    on_cancel: called when the request is cancelled, in the thread that cancels it.
    stages: records when each stage of the request ended; None if no record is wanted.
    outputs: one entry per item for each output name; complete once the request is done and `error` is None.
    """

    __slots__ = (
        "__weakref__",
        "_num_missing",
        "error",
        "flow",
        "is_cancelled",
        "num_items",
        "on_cancel",
        "on_done",
        "on_outputs",
        "on_progress",
        "outputs",
        "stages",
    )

    def __init__(
        self,
        num_items: int,
        on_done: Callable[[PendingRequest], None],
        on_progress: Callable[[int], None] | None = None,
        *,
        flow: Flow = _DEFAULT_FLOW,
        stages: RequestStages | None = None,
    ) -> None:
        self.outputs: dict[OutputName, Any] = {}  # (num_items, D) float32, or a list of num_items entries
        self.error: Exception | None = None
        self.flow = flow
        self.is_cancelled = False
        self.on_done = on_done
        self.on_outputs: Callable[[int], None] | None = None
        self.on_cancel: Callable[[PendingRequest], None] | None = None
        self.on_progress = on_progress
        self.num_items = num_items
        self.stages = stages
        self._num_missing = num_items

    def cancel(self) -> None:
        """Skip the items that are still queued. `on_done` is not called, unless it is already running."""
        self.is_cancelled = True
        if self.on_cancel is not None:
            self.on_cancel(self)

    def count_completed(self, num_items: int) -> bool:
        """Count completed items and return whether they were the last. Call under the completer's lock."""
        self._num_missing -= num_items
        return self._num_missing == 0 and not self.is_cancelled

    def count_bytes(self, index: int) -> int:
        """Return the size of the outputs of one completed item."""
        return sum(count_value_bytes(output[index]) for output in self.outputs.values())

    def set_error(self, error: Exception) -> None:
        """Set the error and skip the remaining items. Call under the completer's lock."""
        self.error = error
        self.is_cancelled = True


@dataclass(slots=True, eq=False)
class Item:
    """One encoded input that waits to be computed.

    index: of its entry in the outputs of its request.
    queued_s: when it was encoded, by `time.monotonic`.
    is_done: whether it has ended, with a result or an error; set once, under the completer's lock.
    """

    encoded: Encoded
    request: PendingRequest
    index: int
    queued_s: float = field(default_factory=time.monotonic)
    num_tokens: int = field(init=False)
    is_done: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.num_tokens = self.encoded.num_tokens

    @property
    def is_cancelled(self) -> bool:
        return self.request.is_cancelled

    @property
    def flow(self) -> Flow:
        return self.request.flow

    def store(self, outputs: BatchOutputs, row: int, lock: AbstractContextManager[Any]) -> None:
        """Copy entry `row` of each output that the item asked for into its request.

        lock: held while the first item of a request allocates an output.
        Raises BackendFailed for a vector of another dimension than those of the request's other items.
        """
        request = self.request
        for name in self.encoded.spec.outputs:
            output = outputs[name]
            if name not in request.outputs:
                with lock:
                    request.outputs.setdefault(name, _allocate(output, request.num_items))
            target = request.outputs[name]
            if isinstance(output, np.ndarray):
                if output.shape[1:] != target.shape[1:]:
                    raise BackendFailed(
                        f"got {output.shape[1]} values from the backend after {target.shape[1]}"
                    )
                target[self.index] = output[row]
            else:  # an entry may be a view, which would keep the memory of the whole batch alive
                target[self.index] = copy_value(output[row])


def unfinished_items(items: Iterable[Item]) -> list[Item]:
    """Return the items that have not ended and are not cancelled."""
    return [item for item in items if not (item.is_done or item.is_cancelled)]


def select_items(items: Sequence[Item], mask: npt.NDArray[np.bool_]) -> list[Item]:
    """Return the items where the mask (B,) is true."""
    return [items[index] for index in mask.nonzero()[0].tolist()]


def _allocate(output: Output, num_items: int) -> Any:
    """Allocate one output for all items of a request, with the width that it has in a batch."""
    if isinstance(output, np.ndarray):
        return np.empty((num_items, output.shape[1]), dtype=np.float32)
    return [None] * num_items
