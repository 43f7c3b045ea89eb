"""The only place with device threads: one thread per replica takes batches from one shared queue.

The promise: every item that `submit` accepted ends in exactly one row or one exception, whatever the
backend does. Nothing here sleeps or polls; threads wait on one condition. A thread that dies comes back after
a moment; what it was computing is computed once more, each item alone, so that the one to blame fails alone.
A batch that never returns ends the pool. Knows nothing of texts, HTTP or event loops: a finished request is
announced by calling its `on_done` once, on the device thread.
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
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from infinity_emb.backends.base import Backend, Launched, check_answers, finite_items
from infinity_emb.batching import WaitingQueue, split_batch
from infinity_emb.errors import BackendFailed, DeviceOutOfMemory, EngineNotReady, ServingError
from infinity_emb.pending import Item, PendingRequest, chosen, encoded_of, mark_answered, unanswered
from infinity_emb.watchdog import watch

logger = logging.getLogger("infinity_emb")

# A thread that dies so often without computing a batch in between stays dead.
MAX_DEATHS_IN_A_ROW = 5
# What it waits before it comes back: this, and twice as long each time.
FIRST_PAUSE_S = 0.1


@dataclass(slots=True)
class WorkerStats:
    """Counters since start; written under the pool's lock. No item is counted twice."""

    num_batches: int = 0
    num_items: int = 0  # answered with a row
    num_tokens: int = 0
    num_failed_items: int = 0
    num_split_batches: int = 0
    num_retried_items: int = 0  # computed once more: after a death, or in float32
    num_out_of_memory: int = 0  # batches
    num_restarts: int = 0  # of device threads
    num_dropped_items: int = 0  # of requests that were cancelled, late or failed before
    busy_s: float = 0.0


class _InFlight(NamedTuple):
    batch: list[Item]
    launched: Launched
    started_s: float


@dataclass(slots=True, eq=False)
class _Replica:
    """A backend, and what its thread is at.

    taken: items out of the queue, not surely answered.
    suspects: what a thread that died was computing; each is computed alone before anything else.
    busy_since_s: when the latest batch began that has not ended; None while idle.
    """

    backend: Backend
    taken: list[Item] = field(default_factory=list)
    suspects: list[Item] = field(default_factory=list)
    in_flight: deque[_InFlight] = field(default_factory=deque)
    busy_since_s: float | None = None
    num_deaths_in_a_row: int = 0
    is_down: bool = False

    @property
    def under_way(self) -> list[Item]:
        return self.taken + self.suspects


class WorkerPool:
    """Device threads of one engine, and the queue they share.

    batch_timeout_s: a batch that takes longer will never return.
    on_death: called once, on any thread, when the pool cannot compute any more.
    """

    def __init__(
        self,
        backends: Sequence[Backend],
        *,
        max_batch_tokens: int,
        max_batch_items: int,
        batch_timeout_s: float = float("inf"),
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        self.stats = WorkerStats()
        self._replicas = [_Replica(backend) for backend in backends]
        self._queue: WaitingQueue[Item] = WaitingQueue(
            max_batch_tokens=max_batch_tokens, max_batch_items=max_batch_items
        )
        self._batch_timeout_s = batch_timeout_s
        self._on_death = on_death
        self._changed = threading.Condition()
        self._num_idle = 0
        self._num_running = 0
        self._is_open = False
        self._death: BaseException | None = None
        self._on_ended: Callable[[], None] | None = None
        self._is_over = threading.Event()  # for the watchdog

    @property
    def is_alive(self) -> bool:
        """Whether an item that is submitted now will be computed."""
        return self._is_open and self._death is None

    @property
    def is_ready(self) -> bool:
        """Whether a replica computes; false while all of them come back from a death."""
        return self.is_alive and not all(replica.is_down for replica in self._replicas)

    @property
    def num_waiting(self) -> int:
        """Items in the queue."""
        return len(self._queue)

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens in the queue."""
        return self._queue.num_tokens

    @property
    def num_waiting_interactive_tokens(self) -> int:
        """Those of interactive requests."""
        return self._queue.num_tokens_of("interactive")

    def describe_state(self) -> dict[str, object]:
        """What a person wants to know who finds the pool slow or stuck."""
        now_s = time.monotonic()
        return {
            "waiting": f"{len(self._queue)} items of {self._queue.num_tokens} tokens",
            "batches": f"at most {self._queue.max_batch_tokens} tokens",
            "replicas": [
                f"{len(each.under_way)} items under way"
                + ("" if each.busy_since_s is None else f" for {now_s - each.busy_since_s:.1f} s")
                + (", down" if each.is_down else "")
                for each in self._replicas
            ],
            "counters": self.stats,
        }

    def start(self, backends: Sequence[Backend] = ()) -> None:
        """Start one thread per replica. Raises EngineNotReady while one of an earlier start has not ended.

        backends: in the place of those that it has.
        """
        with self._changed:
            if self._num_running:
                raise EngineNotReady("a device thread is still running; stop the engine, or wait for its end")
            self._is_open, self._death, self._on_ended = True, None, None
            backends = backends or [replica.backend for replica in self._replicas]
            self._replicas = [_Replica(backend) for backend in backends]
            self._num_running = len(self._replicas)
            self._is_over = threading.Event()
        for number, replica in enumerate(self._replicas):
            _start_thread(f"infinity-replica-{number}", self._run, replica)
        if self._batch_timeout_s < threading.TIMEOUT_MAX:
            _start_thread(
                "infinity-watchdog",
                watch,
                self._is_over,
                self._batch_timeout_s,
                self._replicas_at_work,
                self._give_up,
            )

    def forget_backends(self) -> bool:
        """Keep nothing of the models, until `start` brings others; False while a thread has not ended."""
        with self._changed:
            if self._num_running:
                return False
            for replica in self._replicas:
                del replica.backend  # the last lines of a thread still know its replica
            self._replicas = []
        return True

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
            under_way = [item for replica in self._replicas for item in replica.under_way]
        return num_waiting + self._fail(under_way, _unfinished())

    def _run(self, replica: _Replica) -> None:
        try:
            is_over = False
            while not is_over:
                try:
                    self._work(replica)
                    is_over = True
                except BaseException as exc:  # noqa: BLE001 - a dead thread must not leave a request waiting
                    is_over = not self._comes_back(replica, exc)
        finally:
            self._end_thread()

    def _work(self, replica: _Replica) -> None:
        """Compute until the pool is closed and nothing waits."""
        replica.backend.prepare_thread()
        self._compute_suspects(replica)
        while True:
            batch = self._next_batch(replica)
            if batch:
                self._launch(replica, batch, replica.in_flight)
            elif not replica.in_flight:
                return
            if replica.in_flight and (not batch or len(replica.in_flight) >= replica.backend.num_in_flight):
                self._collect(replica, replica.in_flight)

    def _compute_suspects(self, replica: _Replica) -> None:
        """Each alone: one of them may have ended the thread, and would take its neighbours with it again."""
        while replica.suspects:
            with self._changed:
                replica.taken = [replica.suspects.pop(0)]
                self.stats.num_retried_items += 1
            self._compute(replica, unanswered(replica.taken))

    def _compute(self, replica: _Replica, batch: list[Item]) -> None:
        """One batch, beside what the thread has in flight."""
        under_way: deque[_InFlight] = deque()
        if batch:
            self._launch(replica, batch, under_way)
        if under_way:
            self._collect(replica, under_way)

    def _next_batch(self, replica: _Replica) -> list[Item]:
        """The next batch; empty when none waits and one is in flight, or when the pool is closed."""
        replica.busy_since_s = time.monotonic() if replica.in_flight else None
        with self._changed:
            replica.taken = [item for each in replica.in_flight for item in each.batch]
            self._num_idle += 1
            try:
                while self._death is None:
                    batch = self._queue.take_batch(
                        num_idle_replicas=self._num_idle,
                        tokens_beside=self._tokens_beside(replica) if replica.backend.shares_device else 0,
                    )
                    self.stats.num_dropped_items = self._queue.num_dropped
                    if batch or replica.in_flight or not self._is_open:
                        replica.taken += batch
                        return batch
                    self._changed.wait()
                return []
            finally:
                self._num_idle -= 1

    def _tokens_beside(self, replica: _Replica) -> int:
        """Tokens that the other threads compute. Called under the pool's lock."""
        others = (each.taken for each in self._replicas if each is not replica)
        return sum(item.num_tokens for taken in others for item in taken)

    def _launch(self, replica: _Replica, batch: list[Item], in_flight: deque[_InFlight]) -> None:
        started_s = replica.busy_since_s = time.monotonic()
        failure: Exception | None = None
        try:
            in_flight.append(_InFlight(batch, replica.backend.launch(encoded_of(batch)), started_s))
        except Exception as exc:  # noqa: BLE001 - a bad batch must not end the loop
            failure = _without_locals(exc)
        if failure is not None:  # here and not above: a retry inside of `except` runs beside the failed pass
            self._retry_or_fail(replica, batch, failure)

    def _collect(self, replica: _Replica, in_flight: deque[_InFlight]) -> None:
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
            self._resolve(chosen(batch, is_finite), time.monotonic() - started_s)
            self._retry_in_full_precision(replica, chosen(batch, ~is_finite))
            replica.num_deaths_in_a_row = 0

    def _retry_or_fail(self, replica: _Replica, batch: list[Item], failure: Exception) -> None:
        """Halve a failed batch until the item that is to blame fails alone."""
        is_out_of_memory = isinstance(failure, (DeviceOutOfMemory, MemoryError))
        if is_out_of_memory:
            self._make_room(replica, batch)
        if len(batch) == 1:
            self._fail(batch, _as_backend_failure(failure))
            return
        logger.warning("a batch of %d items failed (%s); computing its halves", len(batch), failure)
        with self._changed:
            self.stats.num_split_batches += 1
        for half in split_batch(batch):
            self._compute(replica, unanswered(half))

    def _make_room(self, replica: _Replica, batch: list[Item]) -> None:
        """After a batch that did not fit into the device's memory: smaller ones, which grow again slowly."""
        replica.backend.free_memory()
        with self._changed:
            self.stats.num_out_of_memory += 1
            self._queue.shrink(sum(item.num_tokens for item in batch))
            max_batch_tokens = self._queue.max_batch_tokens
        logger.warning(
            "the device's memory is full; batches have at most %d tokens for now", max_batch_tokens
        )

    def _retry_in_full_precision(self, replica: _Replica, batch: list[Item]) -> None:
        """What was NaN or infinity in company and in half precision may be a number alone and in float32.

        One launch for all, as each may copy the model; the backend computes each item alone.
        """
        wanted = unanswered(batch)
        if not wanted:
            return
        logger.warning("%d inputs gave NaN or infinity; computing them in float32", len(wanted))
        with self._changed:
            self.stats.num_retried_items += len(wanted)
        started_s = time.monotonic()
        failure: Exception | None = None
        try:
            is_finite = self._store_finite(
                wanted, replica.backend.launch(encoded_of(wanted), full_precision=True)
            )
        except Exception as exc:  # noqa: BLE001 - a bad item must not end the loop
            failure = _without_locals(exc)
        if failure is None:
            self._resolve(chosen(wanted, is_finite), time.monotonic() - started_s)
            error = BackendFailed("gives NaN or infinity, alone and in float32 too")
            self._fail(chosen(wanted, ~is_finite), error)
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
            batch[position].store(answers, position, self._changed)
        return is_finite

    def _resolve(self, batch: list[Item], busy_s: float) -> None:
        num_rows: dict[PendingRequest, int] = {}
        with self._changed:
            answered = mark_answered(batch)
            for item in answered:
                num_rows[item.request] = num_rows.get(item.request, 0) + 1
            num_tokens = sum(item.num_tokens for item in answered)
            self.stats.num_batches += 1
            self.stats.num_items += len(answered)
            self.stats.num_tokens += num_tokens
            self.stats.busy_s += busy_s
            self._queue.recover(num_tokens)
            done = [request for request, number in num_rows.items() if request.count_rows(number)]
        for request, number in num_rows.items():
            if request.on_progress is not None and not request.is_cancelled:
                request.on_progress(number)
        for request in done:
            request.on_done(request)

    def _fail(self, items: list[Item], error: Exception) -> int:
        """End what is not answered yet with an error; returns how many items that were."""
        with self._changed:
            failed = [item for item in mark_answered(items) if not item.is_cancelled]
            self.stats.num_failed_items += len(failed)
            first_rows: dict[PendingRequest, int] = {}
            for item in failed:
                first_rows.setdefault(item.request, item.row)
            for request, row in first_rows.items():
                request.set_error(error.moved_to(row) if isinstance(error, BackendFailed) else error)
        for request in first_rows:
            request.on_done(request)
        return len(failed)

    def _comes_back(self, replica: _Replica, exc: BaseException) -> bool:
        """After a moment, unless it has died too often; an item that was computed alone is to blame."""
        replica.num_deaths_in_a_row += 1
        if replica.num_deaths_in_a_row > MAX_DEATHS_IN_A_ROW or self._death is not None:
            self._die(exc, replica)
            return False
        pause_s = FIRST_PAUSE_S * 2 ** (replica.num_deaths_in_a_row - 1)
        logger.error("a device thread died: %r; it comes back in %g s", exc, pause_s, exc_info=exc)
        with self._changed:
            under_way = unanswered(replica.taken)
            replica.taken, replica.busy_since_s = [], None
            replica.in_flight.clear()
            if len(under_way) > 1:
                replica.suspects = under_way + replica.suspects
        if len(under_way) == 1:
            self._fail(under_way, BackendFailed(f"ended the device thread: {exc!r}"))
        with self._changed:
            self.stats.num_restarts += 1
            replica.is_down = True
            self._changed.wait_for(lambda: not self.is_alive, timeout=pause_s)
            replica.is_down = False
        return True

    def _die(self, exc: BaseException, replica: _Replica) -> None:
        """Compute nothing any more, but for what other replicas are at."""
        logger.critical("a device thread died and does not come back: %r", exc, exc_info=exc)
        with self._changed:
            is_first = self._death is None
            self._death = exc
            self._changed.notify_all()
            items = replica.under_way + self._queue.take_all()
        self._fail(items, self._not_ready())
        if is_first:
            self._on_death()

    def _replicas_at_work(self) -> list[tuple[_Replica, float]]:
        """With the time at which the batch began that each is at."""
        began = [(replica, replica.busy_since_s) for replica in self._replicas]
        return [(replica, since_s) for replica, since_s in began if since_s is not None]

    def _give_up(self, replica: _Replica) -> None:
        """Its batch will never return."""
        replica.busy_since_s = None  # one report is enough
        self._die(TimeoutError(f"a batch took over {self._batch_timeout_s:g} s"), replica)

    def _end_thread(self) -> None:
        with self._changed:
            self._num_running -= 1
            on_ended = None if self._num_running else self._on_ended
            if not self._num_running:
                self._is_over.set()
        if on_ended is not None:
            on_ended()

    def _not_ready(self) -> EngineNotReady:
        if self._death is not None:
            return EngineNotReady(f"the model's device thread died ({self._death!r}); restart the server")
        return EngineNotReady("the engine is not started or is shutting down")


def _start_thread(name: str, target: Callable[..., None], *args: object) -> None:
    threading.Thread(target=target, args=args, name=name, daemon=True).start()


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
