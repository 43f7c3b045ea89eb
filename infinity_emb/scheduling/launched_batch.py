"""A batch that was launched on the device and is not collected yet."""

from __future__ import annotations

import time
import traceback
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from infinity_emb.backends.base import Backend, InFlightBatch, check_outputs, find_finite_items
from infinity_emb.scheduling.requests import Item


class LaunchedBatch:
    """The items of a batch, and the backend's handle to it or the exception of a failed launch.

    started_s, computed_s: when it was launched and when its outputs arrived, by `time.monotonic`.
    """

    __slots__ = ("_handle", "computed_s", "items", "started_s")

    def __init__(self, items: list[Item], handle: InFlightBatch | Exception, started_s: float) -> None:
        self.items = items
        self.started_s = self.computed_s = started_s
        self._handle: InFlightBatch | Exception | None = handle

    def collect(self, lock: AbstractContextManager[Any]) -> npt.NDArray[np.bool_] | Exception:
        """Wait for the outputs and store those that are finite.

        Returns (B,) bool, true for items whose outputs are stored; or the exception of a failed batch. It is
        not raised: in an `except` block, a retry would run while the failed batch still holds memory.
        """
        handle, self._handle = self._handle, None
        assert handle is not None, "a batch is collected once"
        if isinstance(handle, Exception):
            return handle
        try:
            return self._store_finite(handle, lock)
        except Exception as exc:  # noqa: BLE001 - a failed batch must not end the worker loop
            return clear_frames(exc)
        finally:
            del handle  # the frame outlives this call as part of a traceback

    def _store_finite(
        self, handle: InFlightBatch, lock: AbstractContextManager[Any]
    ) -> npt.NDArray[np.bool_]:
        outputs = handle.result()
        self.computed_s = time.monotonic()
        encoded = [item.encoded for item in self.items]
        check_outputs(outputs, encoded)
        is_finite = find_finite_items(outputs, encoded)  # (B,)
        for row in is_finite.nonzero()[0].tolist():
            self.items[row].store(outputs, row, lock)
        return is_finite


def launch(backend: Backend, items: list[Item], *, full_precision: bool = False) -> LaunchedBatch:
    """Start computing a batch. A failure is reported when the batch is collected."""
    started_s = time.monotonic()
    try:
        handle = backend.launch([item.encoded for item in items], full_precision=full_precision)
    except Exception as exc:  # noqa: BLE001 - a failed batch must not end the worker loop
        return LaunchedBatch(items, clear_frames(exc), started_s)
    return LaunchedBatch(items, handle, started_s)


def clear_frames(exc: Exception) -> Exception:
    """Release the local variables that the tracebacks of an exception and its causes keep alive."""
    chain: list[BaseException | None] = [exc]
    seen: set[int] = set()
    while chain:
        error = chain.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            traceback.clear_frames(error.__traceback__)
            chain += error.__cause__, error.__context__
    return exc
