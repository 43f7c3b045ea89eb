"""The only place with device threads: one thread per replica takes batches from one shared queue.

The promise: every item that `submit` accepted ends in exactly one row or one exception, whatever the
backend does. Nothing here sleeps or polls; threads wait on one condition. Knows nothing of texts, HTTP
or event loops: a finished request is announced by calling its `on_done` once, on the device thread.
Over 300 lines, so that the promise can be checked on one page.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from infinity_emb.backends.base import (
    Answers,
    Backend,
    Column,
    Encoded,
    Launched,
    Rows,
    SparseRow,
    check_answers,
    finite_items,
)
from infinity_emb.batching import WaitingQueue, split_batch
from infinity_emb.errors import BackendFailed, EngineNotReady, ServingError
from infinity_emb.primitives import OutputName

logger = logging.getLogger("infinity_emb")


class PendingRequest:
    """The answer to one request while it is being computed.

    on_done is called once, on whichever thread ends the request: after the last row, or after the first
    error; it must not raise. `columns` holds one entry per item and output once `error` is None and it is
    done.
    """

    __slots__ = ("_num_missing", "columns", "error", "is_cancelled", "num_items", "on_done", "on_progress")

    def __init__(
        self,
        num_items: int,
        on_done: Callable[[PendingRequest], None],
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self.columns: dict[OutputName, Any] = {}  # (num_items, D) float32, or a list of num_items arrays
        self.error: Exception | None = None
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


@dataclass(slots=True)
class WorkerStats:
    """Counters since start; written under the pool's lock. No item is counted twice."""

    num_batches: int = 0
    num_items: int = 0  # answered with a row
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
        self._num_running = 0
        self._is_open = False
        self._death: BaseException | None = None
        self._on_ended: Callable[[], None] | None = None
        self._taken: list[list[Item]] = []  # of each thread: items out of the queue, not surely answered

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
        """Start one thread per replica. Raises EngineNotReady while one of an earlier start has not ended."""
        with self._changed:
            if self._num_running:
                raise EngineNotReady("a device thread is still running; stop the engine, or wait for its end")
            self._is_open, self._death, self._on_ended = True, None, None
            self._num_running = len(self._replicas)
            self._taken = [[] for _ in self._replicas]
        for number, work in enumerate(zip(self._replicas, self._taken, strict=True)):
            name = f"infinity-replica-{number}"
            threading.Thread(target=self._run, args=work, name=name, daemon=True).start()

    def submit(self, items: list[Item]) -> None:
        """Accept items. Raises EngineNotReady when they would never be computed."""
        with self._changed:
            if not self.is_alive:
                raise self._not_ready()
            self._queue.add(items)
            self._changed.notify(len(items))

    def close(self, on_ended: Callable[[], None]) -> None:
        """Refuse new items and finish the accepted ones. Returns at once.

        on_ended: called once, by the last thread to end; here where all have ended.
        """
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
            self._on_ended = on_ended
            is_over = not self._num_running
        if is_over:
            on_ended()

    def fail_waiting(self) -> int:
        """Refuse new items and fail those that wait for a device; returns how many they were."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
            waiting = self._queue.take_all()
        return self._fail(waiting, _unfinished())

    def fail_rest(self) -> int:
        """Fail those that wait and those that a device is computing; returns how many they were.

        A batch cannot be called back from its device: its rows are dropped when they come.
        """
        num_waiting = self.fail_waiting()
        with self._changed:
            under_way = [item for taken in self._taken for item in taken]
        return num_waiting + self._fail(under_way, _unfinished())

    def _run(self, replica: Backend, taken: list[Item]) -> None:
        in_flight: deque[_InFlight] = deque()
        try:
            replica.prepare_thread()
            while True:
                batch = self._next_batch(replica, in_flight, taken)
                if batch:
                    self._launch(replica, batch, in_flight)
                elif not in_flight:
                    return
                if in_flight and (not batch or len(in_flight) >= replica.num_in_flight):
                    self._collect(replica, in_flight)
        except BaseException as exc:  # noqa: BLE001 - a thread that dies must not leave a request waiting
            self._die(exc, taken)
        finally:
            self._end_thread()

    def _next_batch(self, replica: Backend, in_flight: deque[_InFlight], taken: list[Item]) -> list[Item]:
        """The next batch; empty when none waits and one is in flight, or when the pool is closed."""
        with self._changed:
            taken[:] = [item for each in in_flight for item in each.batch]
            self._num_idle += 1
            try:
                while True:
                    batch = self._queue.take_batch(
                        num_idle_replicas=self._num_idle,
                        tokens_beside=self._tokens_beside(taken) if replica.shares_device else 0,
                    )
                    if batch or in_flight or not self._is_open:
                        taken += batch
                        return batch
                    self._changed.wait()
            finally:
                self._num_idle -= 1

    def _tokens_beside(self, taken: list[Item]) -> int:
        """Tokens that the other threads compute. Called under the pool's lock."""
        others = (each for each in self._taken if each is not taken)
        return sum(item.num_tokens for each in others for item in each)

    def _launch(self, replica: Backend, batch: list[Item], in_flight: deque[_InFlight]) -> None:
        started_s = time.monotonic()
        failure: Exception | None = None
        try:
            in_flight.append(_InFlight(batch, replica.launch(encoded_of(batch)), started_s))
        except Exception as exc:  # noqa: BLE001 - a bad batch must not end the loop
            failure = _without_locals(exc)
        if failure is not None:  # here and not above: a retry inside of `except` runs beside the failed pass
            self._retry_or_fail(replica, batch, failure)

    def _collect(self, replica: Backend, in_flight: deque[_InFlight]) -> None:
        """Wait for the oldest batch and answer it."""
        batch, launched, started_s = in_flight.popleft()
        failure: Exception | None = None
        try:
            is_finite = self._store_finite(batch, launched)
        except Exception as exc:  # noqa: BLE001 - a bad batch must not end the loop
            failure = _without_locals(exc)
        del launched  # what it holds on the device would lie beside a retry
        if failure is not None:
            self._retry_or_fail(replica, batch, failure)
        else:
            self._resolve(_chosen(batch, is_finite), time.monotonic() - started_s)
            self._retry_in_full_precision(replica, _chosen(batch, ~is_finite))

    def _retry_or_fail(self, replica: Backend, batch: list[Item], failure: Exception) -> None:
        """Halve a failed batch until the item that is to blame fails alone."""
        if len(batch) == 1:
            self._fail(batch, _as_backend_failure(failure))
            return
        logger.warning("a batch of %d items failed (%s); computing its halves", len(batch), failure)
        with self._changed:
            self.stats.num_split_batches += 1
        for half in split_batch(batch):
            wanted = [item for item in half if not item.is_cancelled]
            under_way: deque[_InFlight] = deque()
            if wanted:
                self._launch(replica, wanted, under_way)
            if under_way:
                self._collect(replica, under_way)

    def _retry_in_full_precision(self, replica: Backend, batch: list[Item]) -> None:
        """What was NaN or infinity in company and in half precision may be a number alone and in float32.

        One launch for all, as each may copy the model; the backend computes each item alone.
        """
        wanted = [item for item in batch if not item.is_cancelled]
        if not wanted:
            return
        logger.warning("%d inputs gave NaN or infinity; computing them in float32", len(wanted))
        started_s = time.monotonic()
        failure: Exception | None = None
        try:
            is_finite = self._store_finite(wanted, replica.launch(encoded_of(wanted), full_precision=True))
        except Exception as exc:  # noqa: BLE001 - a bad item must not end the loop
            failure = _without_locals(exc)
        if failure is None:
            self._resolve(_chosen(wanted, is_finite), time.monotonic() - started_s)
            error = BackendFailed("gives NaN or infinity, alone and in float32 too")
            self._fail(_chosen(wanted, ~is_finite), error)
        elif len(wanted) == 1:
            self._fail(wanted, _as_backend_failure(failure))
        else:
            for item in wanted:
                self._retry_in_full_precision(replica, [item])

    def _store_finite(self, batch: list[Item], launched: Launched) -> npt.NDArray[np.bool_]:
        """Wait for a batch and keep the answers that are numbers; returns (B,) bool, which these are."""
        answers = launched.collect()
        encoded = encoded_of(batch)
        check_answers(answers, encoded)
        is_finite = finite_items(answers, encoded)  # (B,)
        for position in np.flatnonzero(is_finite).tolist():
            self._store(batch[position], answers, position)
        return is_finite

    def _store(self, item: Item, answers: Answers, position: int) -> None:
        """Copy one item's answers, each into its request's column."""
        request = item.request
        for name in item.encoded.recipe.outputs:
            column = answers[name]
            if name not in request.columns:
                with self._changed:
                    request.columns.setdefault(name, _empty_column(column, request.num_items))
            target = request.columns[name]
            if isinstance(column, np.ndarray) and column.shape[1:] != target.shape[1:]:
                raise BackendFailed(f"got {column.shape[1]} values from the backend after {target.shape[1]}")
            # A matrix's row is copied where it goes.
            target[item.row] = (
                column[position] if isinstance(column, np.ndarray) else _copy_of(column[position])
            )

    def _resolve(self, batch: list[Item], busy_s: float) -> None:
        num_rows: dict[PendingRequest, int] = {}
        with self._changed:
            answered = _mark_answered(batch)
            for item in answered:
                num_rows[item.request] = num_rows.get(item.request, 0) + 1
            self.stats.num_batches += 1
            self.stats.num_items += len(answered)
            self.stats.num_tokens += sum(item.num_tokens for item in answered)
            self.stats.busy_s += busy_s
            done = [request for request, number in num_rows.items() if request.count_rows(number)]
        for request, number in num_rows.items():
            if request.on_progress is not None and not request.is_cancelled:
                request.on_progress(number)
        for request in done:
            request.on_done(request)

    def _fail(self, items: list[Item], error: Exception) -> int:
        """End what is not answered yet with an error; returns how many items that were."""
        with self._changed:
            failed = [item for item in _mark_answered(items) if not item.is_cancelled]
            self.stats.num_failed_items += len(failed)
            first_rows: dict[PendingRequest, int] = {}
            for item in failed:
                first_rows.setdefault(item.request, item.row)
            for request, row in first_rows.items():
                request.set_error(error.moved_to(row) if isinstance(error, BackendFailed) else error)
        for request in first_rows:
            request.on_done(request)
        return len(failed)

    def _die(self, exc: BaseException, taken: list[Item]) -> None:
        logger.critical("a device thread died: %r", exc, exc_info=exc)
        with self._changed:
            self._death = exc
            items = taken + self._queue.take_all()
        self._fail(items, self._not_ready())

    def _end_thread(self) -> None:
        with self._changed:
            self._num_running -= 1
            on_ended = None if self._num_running else self._on_ended
        if on_ended is not None:
            on_ended()

    def _not_ready(self) -> EngineNotReady:
        if self._death is not None:
            return EngineNotReady(f"the model's device thread died ({self._death!r}); restart the server")
        return EngineNotReady("the engine is not started or is shutting down")


def encoded_of(items: list[Item]) -> list[Encoded]:
    """What the device takes of each."""
    return [item.encoded for item in items]


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


def _chosen(batch: list[Item], is_chosen: npt.NDArray[np.bool_]) -> list[Item]:
    return [batch[position] for position in np.flatnonzero(is_chosen).tolist()]


def _mark_answered(items: list[Item]) -> list[Item]:
    """Those that end now, and not before. Called under the pool's lock."""
    unanswered = [item for item in items if not item.is_answered]
    for item in unanswered:
        item.is_answered = True
    return unanswered


def _unfinished() -> EngineNotReady:
    return EngineNotReady("the server is shutting down and this request was not finished in time")


def _without_locals(exc: Exception) -> Exception:
    """The same error, whose traceback no longer keeps what the failed pass had in memory."""
    chain: list[BaseException | None] = [exc]
    seen: set[int] = set()
    while chain:
        each = chain.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            chain += each.__cause__, each.__context__
    return exc


def _as_backend_failure(exc: Exception) -> Exception:
    if isinstance(exc, ServingError):
        return exc
    failure = BackendFailed(f"could not be computed: {type(exc).__name__}: {exc}")
    failure.__cause__ = exc
    return failure
