"""The worker threads of one engine: one per replica, all taking batches from one queue.

Every item that the queue accepted ends in exactly one result or one error, whatever the backend does.
Nothing here sleeps or polls: threads wait on one condition. A batch that never returns fails the pool.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from infinity_emb.backends.base import Backend
from infinity_emb.errors import EngineNotReady
from infinity_emb.scheduling.completion import Completer, WorkerStats
from infinity_emb.scheduling.histogram import StageHistograms
from infinity_emb.scheduling.interpreter_exit import end_at_exit
from infinity_emb.scheduling.replica import Replica
from infinity_emb.scheduling.throughput import Progress
from infinity_emb.scheduling.watchdog import watch_for_hangs
from infinity_emb.scheduling.work_queue import WorkQueue

logger = logging.getLogger("infinity_emb")


class WorkerPool:
    """The queue of one engine and the replicas that compute what it holds.

    histograms: of all batches since the pool was created.
    queue: takes items from any thread, between `start` and `close`.
    batch_timeout_s: how long a batch may take before its worker thread is considered hung.
    max_consecutive_crashes: a worker thread that crashes more often, without completing a batch in between,
        is not restarted.
    first_restart_pause_s: pause before the first restart; it doubles with each further crash.
    on_give_up: called once, on any thread, when the pool stops computing for good.
    """

    def __init__(
        self,
        backends: Sequence[Backend],
        *,
        max_batch_tokens: int,
        max_batch_items: int,
        batch_timeout_s: float = float("inf"),
        max_consecutive_crashes: int = 5,
        first_restart_pause_s: float = 0.1,
        on_give_up: Callable[[], None] = lambda: None,
    ) -> None:
        self.queue = WorkQueue(max_batch_tokens=max_batch_tokens, max_batch_items=max_batch_items)
        self.histograms = StageHistograms()
        self._completer = Completer(self.histograms)
        self._batch_timeout_s = batch_timeout_s
        self._max_consecutive_crashes = max_consecutive_crashes
        self._first_restart_pause_s = first_restart_pause_s
        self._on_give_up = on_give_up
        self._replicas = [self._make_replica(backend) for backend in backends]
        self._lock = threading.Lock()
        self._num_running = 0
        self._num_parallel = 1  # batches that can be in flight at once
        self._on_closed: Callable[[], None] | None = None
        self._all_ended = threading.Event()
        self._threads: list[threading.Thread] = []  # of the replicas

    @property
    def is_alive(self) -> bool:
        """Return true if an item submitted now will be computed."""
        return self.queue.is_accepting

    @property
    def is_ready(self) -> bool:
        """Return true if a replica can compute now; false while all of them restart."""
        return self.is_alive and not all(replica.is_restarting for replica in self._replicas)

    @property
    def stats(self) -> WorkerStats:
        """A snapshot of the counters."""
        return self._completer.stats._replace(num_skipped_items=self.queue.num_skipped)

    @property
    def progress(self) -> Progress:
        """Return what admission reads for each request, which takes less time than `stats`."""
        stats = self._completer.stats
        return Progress(stats.num_items, stats.num_tokens, stats.compute_s, self._num_parallel)

    @property
    def num_replicas(self) -> int:
        """Return how many replicas compute; 0 while the model is unloaded."""
        return len(self._replicas)

    def describe_state(self) -> dict[str, object]:
        """Return details that help to find out why the pool is slow or stuck."""
        return {
            "waiting": f"{len(self.queue)} items of {self.queue.num_tokens} tokens",
            "batches": f"at most {self.queue.max_batch_tokens} tokens",
            "replicas": [self._describe_replica(replica) for replica in self._replicas],
            "counters": self.stats,
        }

    def start(self, backends: Sequence[Backend] = ()) -> None:
        """Start one thread per replica. Raises EngineNotReady while a thread of an earlier start still runs.

        backends: replace the current ones, unless empty.
        """
        with self._lock:
            if self._num_running:
                raise EngineNotReady(
                    "a worker thread is still running; stop the engine, or wait for it to end"
                )
            backends = backends or [replica.backend for replica in self._replicas]
            self._replicas = [self._make_replica(backend) for backend in backends]
            self._num_parallel = sum(backend.num_in_flight for backend in backends)
            self._num_running = len(self._replicas)
            self._on_closed = None
            self._all_ended = threading.Event()
        self.queue.open()
        self._threads = [
            _start_thread(f"infinity-replica-{index}", replica.run, self._on_replica_ended)
            for index, replica in enumerate(self._replicas)
        ]
        end_at_exit(self)
        if self._batch_timeout_s < threading.TIMEOUT_MAX:
            _start_thread(
                "infinity-watchdog",
                watch_for_hangs,
                self._all_ended,
                self._batch_timeout_s,
                self._busy_replicas,
                self._give_up_hung,
            )

    def release_backends(self) -> bool:
        """Drop the references to the model until the next `start`; return False while a thread still runs."""
        with self._lock:
            if self._num_running:
                return False
            for replica in self._replicas:
                del replica.backend  # a thread that is about to end still refers to its replica
            self._replicas = []
        return True

    def close(self, on_closed: Callable[[], None]) -> None:
        """Refuse new items and finish the accepted ones. Returns at once.

        on_closed: called once, by the last thread to end, or here if none runs.
        """
        with self._lock:
            self._on_closed = on_closed
            is_closed = not self._num_running
        self.queue.close()
        if is_closed:
            on_closed()

    def fail_queued(self) -> int:
        """Refuse new items and fail the queued ones; return their number."""
        self.queue.close()
        return self._completer.fail(self.queue.take_all(), unfinished())

    def fail_all(self) -> int:
        """Fail the queued items and those that a device is computing; return their number.

        A batch cannot be recalled from its device: its outputs are dropped when they arrive.
        """
        num_queued = self.fail_queued()
        taken = [item for replica in self._replicas for item in self.queue.list_held_items(replica)]
        return num_queued + self._completer.fail(taken, unfinished())

    def end_threads(self, timeout_s: float) -> None:
        """Fail all items and wait for the worker threads, unless the pool has given up on them."""
        self.fail_all()
        deadline_s = time.monotonic() + timeout_s
        for thread in [] if self.queue.has_failed else self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))

    def _make_replica(self, backend: Backend) -> Replica:
        return Replica(
            backend,
            self.queue,
            self._completer,
            max_consecutive_crashes=self._max_consecutive_crashes,
            first_restart_pause_s=self._first_restart_pause_s,
            give_up=self._give_up,
        )

    def _on_replica_ended(self) -> None:
        """Close the pool when the last worker thread has ended."""
        with self._lock:
            self._num_running -= 1
            on_closed = None if self._num_running else self._on_closed
            if not self._num_running:
                self._all_ended.set()
        if on_closed is not None:
            on_closed()

    def _give_up(self, replica: Replica, failure: BaseException) -> None:
        """Stop computing for good, except for what other replicas have taken."""
        is_first = self.queue.fail(failure)
        items = self.queue.list_held_items(replica) + self.queue.take_all()
        self._completer.fail(items, self.queue.not_ready())
        if is_first:
            self._on_give_up()

    def _busy_replicas(self) -> list[tuple[Replica, float]]:
        """Return the replicas that compute, each with the time at which its batch was launched."""
        launched = [(replica, replica.busy_since_s) for replica in self._replicas]
        return [(replica, since_s) for replica, since_s in launched if since_s is not None]

    def _give_up_hung(self, replica: Replica) -> None:
        replica.busy_since_s = None  # report it once
        failure = TimeoutError(f"a batch took over {self._batch_timeout_s:g} s")
        logger.critical("worker thread hangs, giving up: %s", failure)
        self._give_up(replica, failure)

    def _describe_replica(self, replica: Replica) -> str:
        state = f"{len(self.queue.list_held_items(replica))} items under way"
        if replica.busy_since_s is not None:
            state += f" for {time.monotonic() - replica.busy_since_s:.1f} s"
        return state + (", restarting" if replica.is_restarting else "")


def _start_thread(name: str, target: Callable[..., None], *args: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    thread.start()
    return thread


def unfinished() -> EngineNotReady:
    """Return the error for requests that the end of a pool cuts off."""
    return EngineNotReady(
        "the model is shutting down or being reloaded, and this request was not finished in time;"
        " send it again"
    )
