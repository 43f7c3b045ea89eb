"""Share a slow call among those who want its result, and rest after each call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

ResultT = TypeVar("ResultT")

# After a call, rest this many times as long as it took, but not longer than the maximum.
REST_PER_CALL = 4
MAX_REST_S = 1.0


class PacedCall(Generic[ResultT]):
    """A call that rests four times as long as it took, up to a second, however often its result is wanted."""

    def __init__(self, call: Callable[[], Awaitable[ResultT]]) -> None:
        self._call = call
        self._next: asyncio.Task[ResultT] | None = None  # waits to begin
        self._running = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begins_at_s = 0.0

    async def get(self) -> ResultT:
        """Return the result of a call that begins later than this one, shared with others that wait."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # what waits in another loop, which was closed, never begins
            self._loop, self._next, self._running = loop, None, asyncio.Lock()
        if self._next is None or self._next.done():
            self._next = asyncio.create_task(self._run())
        return await asyncio.shield(self._next)

    async def _run(self) -> ResultT:
        async with self._running:
            await asyncio.sleep(max(0.0, self._begins_at_s - time.monotonic()))
            self._next = None
            started_s = time.monotonic()
            try:
                return await self._call()
            finally:
                ended_s = time.monotonic()
                self._begins_at_s = ended_s + min(MAX_REST_S, REST_PER_CALL * (ended_s - started_s))
