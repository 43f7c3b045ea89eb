"""A semaphore that clients share fairly: its waiters take turns by a fair queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from infinity_emb.scheduling.fair_queue import FairQueue, Flow


@dataclass(slots=True, eq=False)
class _Waiter:
    """A caller that waits for a permit.

    num_tokens: its cost, by which the fair queue shares the permits.
    turn: done when the caller holds a permit or is refused one.
    """

    flow: Flow
    num_tokens: int
    turn: asyncio.Future[None]


class FairSemaphore:
    """A semaphore of one event loop whose waiters are served in the order of a fair queue.

    max_per_client: permits that one client may hold; None for all.
    """

    def __init__(self, num_permits: int, *, max_per_client: int | None = None) -> None:
        self._num_free = num_permits
        self._max_per_client = num_permits if max_per_client is None else max_per_client
        self._num_held: dict[str, int] = {}  # of clients that hold any
        self._waiters: FairQueue[_Waiter] = FairQueue()
        self._make_error: Callable[[], Exception] | None = None  # set when closed

    async def acquire(self, flow: Flow, cost: int) -> None:
        """Wait for a permit, which `release` must return. Raises the error of `close`.

        cost: of the work that the permit is for. Permits are granted so that flows share the cost by weight.
        """
        if self._make_error is not None:
            raise self._make_error()
        if self._can_acquire(flow.client):
            self._take(flow.client)
            return
        waiter = _Waiter(flow, cost, asyncio.get_running_loop().create_future())
        self._waiters.add([waiter])
        try:
            await waiter.turn
        except asyncio.CancelledError:
            turn = waiter.turn
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.release(flow)  # the permit came at the same moment
            raise

    def release(self, flow: Flow) -> None:
        """Return a permit, and pass it on to the next waiter."""
        self._num_free += 1
        self._num_held[flow.client] -= 1
        if not self._num_held[flow.client]:
            del self._num_held[flow.client]
        passed_over = []
        while self._num_free and len(self._waiters):
            start_tag, _, waiter = tagged = self._waiters.pop()
            if waiter.turn.done():
                continue
            if self._can_acquire(waiter.flow.client):
                self._take(waiter.flow.client)
                self._waiters.advance(start_tag)
                waiter.turn.set_result(None)
            else:
                passed_over.append(tagged)
        self._waiters.put_back(passed_over)

    def _can_acquire(self, client: str) -> bool:
        return self._num_free > 0 and self._num_held.get(client, 0) < self._max_per_client

    def _take(self, client: str) -> None:
        self._num_free -= 1
        self._num_held[client] = self._num_held.get(client, 0) + 1

    def close(self, make_error: Callable[[], Exception]) -> None:
        """Raise an error in every caller that waits now or later."""
        self._make_error = make_error
        for waiter in self._waiters.take_all():
            if not waiter.turn.done():
                waiter.turn.set_exception(make_error())
