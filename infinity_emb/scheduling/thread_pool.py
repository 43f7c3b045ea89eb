"""Run blocking functions on threads, with a notice when each has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from infinity_emb.errors import EngineNotReady

ResultT = TypeVar("ResultT")


class ThreadPool:
    """Run blocking functions off the event loop, until the pool is closed."""

    def __init__(self, num_threads: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix=name)

    async def run(
        self, function: Callable[[], ResultT], *, on_ended: Callable[[], None] = lambda: None
    ) -> ResultT:
        """Return the function's result. Raises EngineNotReady when the pool is closed before it starts.

        on_ended: called once, when the function has returned or will not start; on the event loop, unless
        that was closed. The function may outlast a caller that is cancelled.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def end() -> None:
            on_ended()
            if not ended.done():
                ended.set_result(None)

        def announce(_: object) -> None:
            try:
                loop.call_soon_threadsafe(end)
            except RuntimeError:  # the loop was closed
                on_ended()

        try:
            started = self._executor.submit(function)
        except RuntimeError as exc:  # the executor accepts no more work
            on_ended()
            raise pool_closed() from exc
        started.add_done_callback(announce)
        try:
            # Unlike `asyncio.wrap_future`, this tells a closed pool from a cancelled caller.
            await ended
        finally:
            started.cancel()
        if started.cancelled():
            raise pool_closed()
        try:
            return started.result()
        finally:
            del started  # it holds the error, whose traceback holds this frame

    def close(self) -> None:
        """Drop queued functions; running ones finish in the background."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def pool_closed() -> EngineNotReady:
    """Return the error for work that will not start."""
    return EngineNotReady("the engine is shutting down")
