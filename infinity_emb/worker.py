"""The only place with device threads: one thread per replica takes batches from one shared queue.

The promise: every item that `submit` accepted ends in exactly one row or one exception, whatever the
backend does. Nothing here sleeps or polls; threads wait on one condition. Knows nothing of texts, HTTP
or event loops: a finished request is announced by calling its `on_done` once, on the device thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from infinity_emb.backends.base import Backend, Batch, Launched, Rows, TokenIds, check_rows
from infinity_emb.batching import WaitingQueue, split_batch
from infinity_emb.errors import BackendFailed, EngineNotReady, ServingError

logger = logging.getLogger("infinity_emb")


class PendingRequest:
    """The answer to one request while it is being computed.

    on_done is called once, on whichever thread ends the request: after the last row, or after the first
    error. `rows` is (num_items, D) float32 once `error` is None and it is done.
    """

    __slots__ = ("_num_missing", "error", "is_cancelled", "num_items", "on_done", "on_progress", "rows")

    def __init__(
        self,
        num_items: int,
        on_done: Callable[[PendingRequest], None],
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self.rows: Rows | None = None
        self.error: Exception | None = None
        self.is_cancelled = False
        self.on_done = on_done
        self.on_progress = on_progress
        self.num_items = num_items
        self._num_missing = num_items

    def cancel(self) -> None:
        """Drop what still waits; `on_done` will not be called."""
        self.is_cancelled = True

    def count_rows(self, num_rows: int) -> bool:
        """Note that rows arrived; true when they were the last. Called under the pool's lock."""
        self._num_missing -= num_rows
        return self._num_missing == 0 and not self.is_cancelled

    def set_error(self, error: Exception) -> bool:
        """Note the first error and drop the rest; true for the first. Called under the pool's lock."""
        if self.is_cancelled:
            return False
        self.error = error
        self.is_cancelled = True
        return True


@dataclass(slots=True)
class Item:
    """One text that waits: its tokens, and the row of its request that it fills."""

    token_ids: TokenIds
    request: PendingRequest
    row: int
    type_ids: TokenIds | None = None
    num_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_tokens = len(self.token_ids)

    @property
    def is_cancelled(self) -> bool:
        return self.request.is_cancelled


@dataclass(slots=True)
class WorkerStats:
    """Counters since start; written under the pool's lock."""

    num_batches: int = 0
    num_items: int = 0
    num_tokens: int = 0
    num_failed_items: int = 0
    num_split_batches: int = 0
    busy_s: float = 0.0


class _InFlight(NamedTuple):
    batch: list[Item]
    launched: Launched
    started_s: float


class WorkerPool:
    """Device threads of one engine, and the queue they share."""

    def __init__(self, replicas: Sequence[Backend], *, max_batch_tokens: int, max_batch_items: int) -> None:
        self.stats = WorkerStats()
        self._replicas = replicas
        self._queue: WaitingQueue[Item] = WaitingQueue(
            max_batch_tokens=max_batch_tokens, max_batch_items=max_batch_items
        )
        self._changed = threading.Condition()
        self._num_idle = 0
        self._is_open = False
        self._death: BaseException | None = None
        self._threads: list[threading.Thread] = []

    @property
    def is_alive(self) -> bool:
        """Whether an item that is submitted now will be computed."""
        return self._is_open and self._death is None

    @property
    def num_waiting(self) -> int:
        """Items in the queue."""
        return len(self._queue)

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens in the queue."""
        return self._queue.num_tokens

    def start(self) -> None:
        """Start one thread per replica."""
        self._is_open = True
        self._threads = [
            threading.Thread(
                target=self._run, args=(replica,), name=f"infinity-replica-{number}", daemon=True
            )
            for number, replica in enumerate(self._replicas)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, items: list[Item]) -> None:
        """Accept items. Raises EngineNotReady when they would never be computed."""
        with self._changed:
            if not self.is_alive:
                raise self._not_ready()
            self._queue.add(items)
            self._changed.notify(len(items))

    def stop(self, *, drain_timeout_s: float) -> int:
        """Refuse new items, finish accepted ones within the deadline, fail the rest. Blocks.

        Returns how many items were failed because the deadline passed.
        """
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
        deadline_s = time.monotonic() + drain_timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        with self._changed:
            left_over = self._queue.take_all()
        error = EngineNotReady("the server is shutting down and this request was not finished in time")
        self._fail(left_over, error)
        return len(left_over)

    def _run(self, replica: Backend) -> None:
        in_flight: deque[_InFlight] = deque()
        batch: list[Item] = []
        try:
            replica.prepare_thread()
            while True:
                batch = self._next_batch(wait=not in_flight)
                if batch:
                    self._launch(replica, batch, in_flight)
                elif not in_flight:
                    return
                if in_flight and (not batch or len(in_flight) >= replica.num_in_flight):
                    self._collect(replica, in_flight.popleft())
        except BaseException as exc:  # noqa: BLE001 - a thread that dies must not leave a request waiting
            under_way = [item for each in in_flight for item in each.batch]
            self._die(exc, batch + under_way)

    def _next_batch(self, *, wait: bool) -> list[Item]:
        """The next batch; empty when none waits and `wait` is false, or when the pool is closed."""
        with self._changed:
            self._num_idle += 1
            try:
                while True:
                    batch = self._queue.take_batch(num_idle_replicas=self._num_idle)
                    if batch or not wait or not self._is_open:
                        return batch
                    self._changed.wait()
            finally:
                self._num_idle -= 1

    def _launch(self, replica: Backend, batch: list[Item], in_flight: deque[_InFlight]) -> None:
        started_s = time.monotonic()
        try:
            in_flight.append(_InFlight(batch, replica.launch(to_batch(batch)), started_s))
        except Exception as exc:  # noqa: BLE001 - a bad batch must not end the loop
            self._retry_or_fail(replica, batch, exc)

    def _collect(self, replica: Backend, done: _InFlight) -> None:
        try:
            rows = done.launched.collect()
            check_rows(rows, len(done.batch))
        except Exception as exc:  # noqa: BLE001 - a bad batch must not end the loop
            self._retry_or_fail(replica, done.batch, exc)
        else:
            self._resolve(done.batch, rows, time.monotonic() - done.started_s)

    def _retry_or_fail(self, replica: Backend, batch: list[Item], exc: Exception) -> None:
        """Halve a failed batch until the item that is to blame fails alone."""
        batch = [item for item in batch if not item.is_cancelled]
        if len(batch) <= 1:
            self._fail(batch, _as_backend_failure(exc))
            return
        logger.warning("a batch of %d items failed (%s); computing its halves", len(batch), exc)
        with self._changed:
            self.stats.num_split_batches += 1
        for half in split_batch(batch):
            under_way: deque[_InFlight] = deque()
            self._launch(replica, half, under_way)
            if under_way:
                self._collect(replica, under_way.popleft())

    def _resolve(self, batch: list[Item], rows: Rows, busy_s: float) -> None:
        finite = np.isfinite(rows).all(axis=1)  # (B,)
        if not finite.all():
            bad = [item for item, is_finite in zip(batch, finite, strict=True) if not is_finite]
            self._fail(bad, BackendFailed("the model answered NaN or infinity for this input"))
        done: list[PendingRequest] = []
        progress: dict[PendingRequest, int] = {}
        for item, row in zip(batch, rows, strict=True):
            self._store(item, row)
            progress[item.request] = progress.get(item.request, 0) + 1
        with self._changed:
            self.stats.num_batches += 1
            self.stats.num_items += len(batch)
            self.stats.num_tokens += sum(item.num_tokens for item in batch)
            self.stats.busy_s += busy_s
            done = [request for request, num_rows in progress.items() if request.count_rows(num_rows)]
        for request, num_rows in progress.items():
            if request.on_progress is not None and not request.is_cancelled:
                request.on_progress(num_rows)
        for request in done:
            request.on_done(request)

    def _store(self, item: Item, row: Rows) -> None:
        request = item.request
        if request.rows is None:
            with self._changed:
                if request.rows is None:
                    request.rows = np.empty((request.num_items, row.shape[0]), dtype=np.float32)
        request.rows[item.row] = row

    def _fail(self, items: list[Item], error: Exception) -> None:
        with self._changed:
            self.stats.num_failed_items += len(items)
            requests = {item.request: None for item in items}
            failed = [request for request in requests if request.set_error(error)]
        for request in failed:
            request.on_done(request)

    def _die(self, exc: BaseException, items: list[Item]) -> None:
        logger.critical("a device thread died: %r", exc, exc_info=exc)
        with self._changed:
            self._death = exc
            items = items + self._queue.take_all()
            self._changed.notify_all()
        self._fail(items, self._not_ready())

    def _not_ready(self) -> EngineNotReady:
        if self._death is not None:
            return EngineNotReady(f"the model's device thread died ({self._death!r}); restart the server")
        return EngineNotReady("the engine is not started or is shutting down")


def to_batch(items: list[Item]) -> Batch:
    """Put the items' tokens end to end."""
    type_ids = None
    if any(item.type_ids is not None for item in items):
        type_ids = np.concatenate(
            [np.zeros_like(item.token_ids) if item.type_ids is None else item.type_ids for item in items]
        )
    return Batch(
        token_ids=np.concatenate([item.token_ids for item in items]),  # (T,)
        lengths=[item.num_tokens for item in items],
        type_ids=type_ids,
    )


def _as_backend_failure(exc: Exception) -> Exception:
    if isinstance(exc, ServingError):
        return exc
    failure = BackendFailed(f"computing this input failed: {type(exc).__name__}: {exc}")
    failure.__cause__ = exc
    return failure
