"""The queue that the worker threads of one engine share: items wait here, and replicas wait for them."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping

from infinity_emb.errors import EngineNotReady
from infinity_emb.scheduling.admission import Backlog
from infinity_emb.scheduling.batch_queue import BatchQueue
from infinity_emb.scheduling.fair_queue import Flow
from infinity_emb.scheduling.requests import Item


class WorkQueue(BatchQueue[Item]):
    """A batch queue that threads share, and the items that each replica has taken out of it.

    A queue is closed until `open`. After `close` it hands out what it has, after `fail` nothing. Its own
    methods hold the lock while they change the batch queue; call no inherited one that changes it.
    """

    def __init__(self, *, max_batch_tokens: int, max_batch_items: int) -> None:
        super().__init__(max_batch_tokens=max_batch_tokens, max_batch_items=max_batch_items)
        self.num_idle_replicas = 0  # which wait for a batch
        self._changed = threading.Condition()
        self._is_open = False
        self._failure: BaseException | None = None
        self._held: dict[Hashable, list[Item]] = {}

    def backlog(self, flow: Flow) -> Backlog:
        """Return the counts of queued and taken tokens by which a request of a flow is admitted."""
        num_interactive, num_bulk = self.num_lane_tokens("interactive"), self.num_lane_tokens("bulk")
        num_taken_bulk = self.num_taken_tokens("bulk")
        return Backlog(
            num_interactive + num_bulk,
            num_interactive,
            self.num_flow_tokens(flow),
            num_taken_bulk + self.num_taken_tokens("interactive"),
            num_taken_bulk,
        )

    @property
    def is_accepting(self) -> bool:
        """Return true if an item submitted now will be computed."""
        return self._is_open and self._failure is None

    @property
    def has_failed(self) -> bool:
        """Return true if the queue stopped handing out batches."""
        return self._failure is not None

    def open(self) -> None:
        """Accept items, also after a failure."""
        with self._changed:
            self._is_open, self._failure = True, None
            self._held.clear()

    def close(self) -> None:
        """Refuse new items; the queued ones are still handed out."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()

    def fail(self, failure: BaseException) -> bool:
        """Refuse new items and hand out no more; return whether this is the first failure."""
        with self._changed:
            is_first = self._failure is None
            self._failure = failure
            self._changed.notify_all()
        return is_first

    def submit(self, items: list[Item], *, wakes: bool = True) -> None:
        """Accept items. Raises EngineNotReady when they would never be computed.

        wakes: wake replicas that wait; otherwise the caller must call `wake` soon.
        """
        with self._changed:
            if not self.is_accepting:
                raise self.not_ready()
            self.add(items)
            if wakes:
                self._changed.notify(len(items))

    def wake(self) -> None:
        """Wake as many waiting replicas as there are items."""
        with self._changed:
            self._changed.notify(len(self))

    def next_batch(
        self, replica: Hashable, in_flight: list[Item], *, shares_device: bool = False
    ) -> list[Item]:
        """Wait for a batch. Returns [] when none is queued and one is in flight, or when the queue ends.

        in_flight: items of batches that the replica has not finished; all others that it took are finished.
        shares_device: whether the batches of other replicas compete with this one's.
        """
        with self._changed:
            self._held[replica] = in_flight
            self.num_idle_replicas += 1
            try:
                while self._failure is None:
                    batch = self.take_batch(
                        num_idle_replicas=self.num_idle_replicas,
                        concurrent_tokens=_count_other_tokens(self._held, replica) if shares_device else (),
                    )
                    if batch or in_flight or not self._is_open:
                        self._held[replica] = in_flight + batch
                        return batch
                    self._changed.wait()
                return []
            finally:
                self.num_idle_replicas -= 1

    def take_all(self) -> list[Item]:
        """Empty the queue."""
        with self._changed:
            return super().take_all()

    def list_held_items(self, replica: Hashable) -> list[Item]:
        """Return what a replica has taken and not finished."""
        with self._changed:
            return [item for item in self._held.get(replica, ()) if not item.is_done]

    def wait_until_refusing(self, timeout_s: float) -> None:
        """Wait until the queue no longer accepts items, or until the timeout."""
        with self._changed:
            self._changed.wait_for(lambda: not self.is_accepting, timeout_s)

    def record_batch(self, num_tokens: int, seconds: float) -> None:
        """Learn the speed from a batch that succeeded, and let batches grow back to their limit."""
        with self._changed:
            self.grow(num_tokens)
            self.observe(num_tokens, seconds)

    def shrink(self, num_tokens: int) -> None:
        """Halve the token budget after a batch of `num_tokens` ran out of memory."""
        with self._changed:
            super().shrink(num_tokens)

    def not_ready(self) -> EngineNotReady:
        """Return the error for items that will not be computed."""
        if self._failure is not None:
            return EngineNotReady(
                f"the model's worker thread crashed ({self._failure!r}); restart the server"
            )
        return EngineNotReady("the engine is not started or is shutting down")


def _count_other_tokens(held: Mapping[Hashable, list[Item]], replica: Hashable) -> list[int]:
    """Count the tokens of each other replica that computes some. Call under the lock."""
    counts = (
        sum(item.num_tokens for item in items if not item.is_done)
        for holder, items in held.items()
        if holder is not replica
    )
    return [count for count in counts if count]
