"""A backend and the worker thread that drives it.

A failed batch is recomputed in halves, so that only the input to blame fails. After a crash the thread
restarts and recomputes the items it held one by one, so that only the item that crashes it fails.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from infinity_emb.backends.base import Backend
from infinity_emb.concurrency import lower_thread_priority
from infinity_emb.errors import BackendFailed
from infinity_emb.scheduling.completion import Completer, WorkerStats
from infinity_emb.scheduling.launched_batch import LaunchedBatch, launch
from infinity_emb.scheduling.recovery import (
    ran_out_of_memory,
    retry_in_full_precision,
    split_batch,
    translate_failure,
)
from infinity_emb.scheduling.requests import Item, select_items, unfinished_items
from infinity_emb.scheduling.work_queue import WorkQueue

logger = logging.getLogger("infinity_emb")


class Replica:
    """One worker thread: launches and collects batches from the queue, and restarts after a crash.

    give_up: called when the thread has crashed too often.
    busy_since_s: when the latest batch was launched; None while idle.
    """

    def __init__(
        self,
        backend: Backend,
        queue: WorkQueue,
        completer: Completer,
        *,
        max_consecutive_crashes: int,
        first_restart_pause_s: float,
        give_up: Callable[[Replica, BaseException], None],
    ) -> None:
        self.backend = backend
        self.busy_since_s: float | None = None
        self.is_restarting = False
        self._queue = queue
        self._completer = completer
        self._max_consecutive_crashes = max_consecutive_crashes
        self._first_restart_pause_s = first_restart_pause_s
        self._give_up = give_up
        self._in_flight: deque[LaunchedBatch] = deque()
        self._computing: list[Item] = []  # what a crash now would interrupt
        self._interrupted: list[Item] = []  # by a crash; each is computed alone before the next batch
        self._consecutive_crashes = 0

    def run(self, on_ended: Callable[[], None]) -> None:
        """Compute batches until the queue is closed and empty, or the thread has crashed too often.

        on_ended: called once, when nothing more will be computed.
        """
        is_running = True
        try:
            if self.backend.num_in_flight == 1:
                # This thread computes: the event loop, which accepts requests, must not wait for it.
                lower_thread_priority()
            while is_running:
                try:
                    self.backend.prepare_thread()
                    self._compute_interrupted()
                    while self._compute_next():
                        pass
                    is_running = False
                except BaseException as exc:  # noqa: BLE001 - a crash must not leave a request waiting
                    is_running = self._restart(exc)
        finally:
            on_ended()

    def _compute_next(self) -> bool:
        """Launch the next batch, and collect the oldest if no more fit in flight; return False at the end."""
        in_flight = [item for launched in self._in_flight for item in launched.items]
        self._computing = in_flight
        self.busy_since_s = time.monotonic() if in_flight else None
        batch = self._queue.next_batch(self, in_flight, shares_device=self.backend.shares_device)
        if batch:
            self._computing = in_flight + batch
            self.busy_since_s = time.monotonic()
            self._in_flight.append(launch(self.backend, batch))
        elif not in_flight:
            return False
        if not batch or len(self._in_flight) >= self.backend.num_in_flight:
            self._collect(self._in_flight.popleft())
        return True

    def _compute_interrupted(self) -> None:
        """Compute each item alone: in one batch, the item that crashed the thread would do so again."""
        while self._interrupted:
            self._computing = [self._interrupted.pop(0)]
            self._completer.count(WorkerStats(num_retried_items=1))
            self._compute(unfinished_items(self._computing))

    def _compute(self, batch: list[Item]) -> None:
        """Launch and collect one batch, while those in flight stay so."""
        if batch:
            self.busy_since_s = time.monotonic()
            self._collect(launch(self.backend, batch))

    def _collect(self, launched: LaunchedBatch) -> None:
        """Wait for a batch and end all its items."""
        items = launched.items
        stored = launched.collect(self._completer.lock)
        if isinstance(stored, Exception):
            self._recover(items, stored)
            return
        is_complete = stored.all()
        completed = items if is_complete else select_items(items, stored)
        num_tokens = self._completer.complete(launched, completed)
        self._queue.record_batch(num_tokens, launched.computed_s - launched.started_s)
        if not is_complete:
            retry_in_full_precision(self.backend, select_items(items, ~stored), self._completer)
        self._consecutive_crashes = 0

    def _recover(self, batch: list[Item], failure: Exception) -> None:
        """Compute a failed batch in halves until the item to blame fails alone."""
        if ran_out_of_memory(failure):
            self._free_memory(batch)
        if len(batch) == 1:
            self._completer.fail(batch, translate_failure(failure))
            return
        logger.warning("a batch of %d failed (%s); retrying in halves", len(batch), failure)
        self._completer.count(WorkerStats(num_split_batches=1))
        for half in split_batch(batch):
            self._compute(unfinished_items(half))

    def _free_memory(self, batch: list[Item]) -> None:
        """Make the next batches smaller than one that ran out of memory."""
        self.backend.free_memory()
        self._completer.count(WorkerStats(num_out_of_memory=1))
        self._queue.shrink(sum(item.num_tokens for item in batch))
        logger.warning("out of memory; reducing batch size to %d tokens", self._queue.max_batch_tokens)

    def _restart(self, crash: BaseException) -> bool:
        """Pause after a crash; return False after too many in a row."""
        self._consecutive_crashes += 1
        if self._consecutive_crashes > self._max_consecutive_crashes or self._queue.has_failed:
            logger.critical("worker thread crashed too often, giving up: %r", crash, exc_info=crash)
            self._give_up(self, crash)
            return False
        pause_s = self._first_restart_pause_s * 2 ** (self._consecutive_crashes - 1)
        logger.error("worker thread crashed: %r; restarting in %g s", crash, pause_s, exc_info=crash)
        self.busy_since_s = None
        self._fail_or_retry(crash)
        self._completer.count(WorkerStats(num_restarts=1))
        self.is_restarting = True
        self._queue.wait_until_refusing(pause_s)
        self.is_restarting = False
        return True

    def _fail_or_retry(self, crash: BaseException) -> None:
        """Fail an item that was computed alone; set several aside, to compute each alone."""
        interrupted = unfinished_items(self._computing)
        self._computing = []
        self._in_flight.clear()
        if len(interrupted) == 1:
            self._completer.fail(interrupted, BackendFailed(f"crashed the worker thread: {crash!r}"))
        else:
            self._interrupted = interrupted + self._interrupted
