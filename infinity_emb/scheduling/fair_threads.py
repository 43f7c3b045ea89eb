"""Threads for the host work of requests, which clients share by the characters of their texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from infinity_emb.concurrency import ThreadPool, pool_closed
from infinity_emb.scheduling.fair_semaphore import FairSemaphore
from infinity_emb.scheduling.request_context import current_request

ResultT = TypeVar("ResultT")

# Work on more characters than this, a single long text, takes up to seconds and cannot be interrupted, so it
# has threads of its own. The rest takes some ten milliseconds.
MAX_SHORT_CHARS = 2**16
# Vectors of so many bytes are converted or copied on the event loop, in some milliseconds.
MAX_INLINE_BYTES = 2**22
_BYTES_PER_CHAR = 256  # are converted in the time of tokenizing one character


class FairThreads:
    """Run functions on threads, in the order of a fair queue of their characters.

    num_threads: of short work, and again of long work.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        # One function more than there are threads may start, so that no thread waits for the event loop.
        self._short_work = _Turns(ThreadPool(num_threads, name), FairSemaphore(num_threads + 1))
        self._long_work = _Turns(ThreadPool(num_threads, f"{name}-long"), FairSemaphore(num_threads))

    async def run(self, function: Callable[[], ResultT], *, num_chars: int, num_inputs: int = 1) -> ResultT:
        """Return the function's result. It does not start once the caller is cancelled.

        num_chars: what the function reads. num_inputs: decides the lane of a request that names none.
        Raises EngineNotReady when the threads are closed before the function starts.
        """
        threads, turns = self._short_work if num_chars <= MAX_SHORT_CHARS else self._long_work
        flow = current_request().flow(num_inputs)
        await turns.acquire(flow, num_chars)
        # A function that has started keeps its thread to its end, also when its caller is cancelled.
        return await threads.run(function, on_ended=lambda: turns.release(flow))

    async def convert(self, function: Callable[[], ResultT], *, num_bytes: int) -> ResultT:
        """Return the result of a function that converts or copies vectors, at once if they are small."""
        if num_bytes <= MAX_INLINE_BYTES:
            return function()
        return await self.run(function, num_chars=num_bytes // _BYTES_PER_CHAR)

    def close(self) -> None:
        """Drop functions that have not started; running ones finish in the background."""
        for threads, turns in (self._short_work, self._long_work):
            turns.close(pool_closed)
            threads.close()


class _Turns(NamedTuple):
    """Threads, and the semaphore in whose order their work starts."""

    threads: ThreadPool
    semaphore: FairSemaphore
