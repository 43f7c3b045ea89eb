"""Start work in turns of its clients, as much in each turn of the event loop as keeps the turn short.

Otherwise hundreds of busy connections would each start a request, or read a piece of a body, in every turn,
and a health check, which needs three turns, would wait for all of them three times. But each turn has a cost,
and requests that start in the same turn are computed together.

While requests are refused, the loop pauses after each turn that has started all of them, so that the threads
that compute have the interpreter lock for themselves.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from dataclasses import dataclass

from infinity_emb.scheduling.fair_queue import FairQueue, Flow

# A longer turn halves the starts of the next one: a text needs several turns, and these must not take longer
# than its computation.
LONG_TURN_S = 0.002
MIN_STARTS, MAX_STARTS = 2, 32
# Unless more than this many wait for each of them: then none would ever wait less.
WAITING_PER_START = 64
# While requests are refused, if none waits.
PAUSE_S = 0.003


@dataclass(slots=True, eq=False)
class _Waiting:
    """Work that has not started.

    num_tokens: its cost in the fair queue.
    """

    flow: Flow
    start: Callable[[], None]
    num_tokens: int = 1


class RequestTurns:
    """The requests of one server that wait to be started or read on, for one event loop at a time.

    min_starts, max_starts: bounds of the usual number per turn.
    """

    def __init__(self, min_starts: int = MIN_STARTS, max_starts: int = MAX_STARTS) -> None:
        self._bounds = min_starts, max_starts
        self._usual_starts = self._turn_starts = min_starts  # the latter: in this turn
        self._scheduled_s = 0.0
        self._has_refused = False  # since the last turn began
        self._loop: asyncio.AbstractEventLoop | None = None
        self._use(None)

    def start(self, flow: Flow, start: Callable[[], None]) -> None:
        """Call `start` at once if few requests have started in this turn, else in a later one."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._use(loop)
        if self._num_started < self._turn_starts and not len(self._waiting):
            self._num_started += 1
            self._schedule()
            start()
        else:
            self._waiting.add([_Waiting(flow, start)])

    async def wait(self, flow: Flow) -> None:
        """Return when it is the turn of the flow, at once if little has started in this turn."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.start(flow, lambda: None if future.done() else future.set_result(None))
        await future

    def note_refusal(self) -> None:
        """Note that a request has been refused because of overload."""
        self._has_refused = True
        self._schedule()

    def _use(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Forget what waits for another loop, which was closed: it would never begin another turn."""
        self._loop = loop
        self._context = contextvars.copy_context()  # not that of the request during which a turn is scheduled
        self._num_started = 0  # in this turn of the loop
        self._waiting: FairQueue[_Waiting] = FairQueue()
        self._is_scheduled = False

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._scheduled_s = time.perf_counter()
            asyncio.get_running_loop().call_soon(self._begin_turn, context=self._context)

    def _begin_turn(self) -> None:
        self._is_scheduled = False
        self._adapt()
        had_starts, self._num_started = bool(self._num_started), 0
        self._turn_starts = self._usual_starts
        if self._has_refused:
            self._has_refused = False
            self._turn_starts = MAX_STARTS
            if not len(self._waiting):
                time.sleep(PAUSE_S)
        if len(self._waiting):
            self._schedule()  # before the first is started, which may fail
        num_due = max(self._turn_starts, len(self._waiting) // WAITING_PER_START)
        while self._num_started < num_due and len(self._waiting):
            tag, _, waiting = self._waiting.pop()
            self._waiting.advance(tag)
            self._num_started += 1
            waiting.start()
        # What has started takes its first step in the next turn, which is measured too.
        if had_starts or self._num_started:
            self._schedule()

    def _adapt(self) -> None:
        """Allow fewer starts after a long turn, and more after a short one that used them all."""
        least, most = self._bounds
        if time.perf_counter() - self._scheduled_s > LONG_TURN_S:
            self._usual_starts = max(self._usual_starts // 2, least)
        elif self._num_started >= self._usual_starts:
            self._usual_starts = min(2 * self._usual_starts, most)
