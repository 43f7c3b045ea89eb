"""Recover from failed batches: split them, recompute in float32, and translate exceptions for clients."""

from __future__ import annotations

import logging
from typing import TypeVar

from infinity_emb.backends.base import Backend
from infinity_emb.errors import BackendFailed, DeviceOutOfMemory, ServingError
from infinity_emb.scheduling.completion import Completer, WorkerStats
from infinity_emb.scheduling.launched_batch import launch
from infinity_emb.scheduling.requests import Item, select_items, unfinished_items

logger = logging.getLogger("infinity_emb")

ItemT = TypeVar("ItemT")


def split_batch(batch: list[ItemT]) -> tuple[list[ItemT], list[ItemT]]:
    """Halve a failed batch of two or more items, to isolate the item that is to blame."""
    middle = len(batch) // 2
    return batch[:middle], batch[middle:]


def ran_out_of_memory(failure: Exception) -> bool:
    """Return whether a smaller batch may succeed."""
    return isinstance(failure, (DeviceOutOfMemory, MemoryError))


def translate_failure(failure: Exception) -> Exception:
    """Return the error that a client gets for an exception of a backend."""
    if isinstance(failure, ServingError):
        return failure
    error = BackendFailed(f"could not be computed: {type(failure).__name__}: {failure}")
    error.__cause__ = failure
    return error


def retry_in_full_precision(backend: Backend, items: list[Item], completer: Completer) -> None:
    """Recompute items whose outputs were not finite, each alone and in float32, and end them.

    All share one launch, as each launch may copy the model; the backend computes the items one by one.
    """
    items = unfinished_items(items)
    if not items:
        return
    logger.warning("%d inputs gave NaN or infinity; recomputing them in float32", len(items))
    completer.count(WorkerStats(num_retried_items=len(items)))
    launched = launch(backend, items, full_precision=True)
    stored = launched.collect(completer.lock)
    if not isinstance(stored, Exception):
        completer.complete(launched, select_items(items, stored))
        completer.fail(select_items(items, ~stored), BackendFailed("gives NaN or infinity, even in float32"))
    elif len(items) == 1:
        completer.fail(items, translate_failure(stored))
    else:
        for item in items:
            retry_in_full_precision(backend, [item], completer)
