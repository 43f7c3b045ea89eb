"""Threads for the host work of requests, which clients share by the characters of their texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from infinity_emb.scheduling.fair_semaphore import FairSemaphore
from infinity_emb.scheduling.request_context import current_request
from infinity_emb.scheduling.thread_pool import ThreadPool, pool_closed

ResultT = TypeVar("ResultT")

# Work on more characters than this, a single long text, takes up to seconds and cannot be interrupted, so it
# runs on separate threads. The rest takes about ten milliseconds.
MAX_SHORT_CHARS = 2**16
# Vectors up to this size are converted or copied on the event loop, in a few milliseconds.
MAX_INLINE_BYTES = 2**22
_BYTES_PER_CHAR = 256  # bytes that are converted in the time it takes to tokenize one character


class FairThreads:
    """Run functions on threads, in the order of a fair queue of their characters.

    num_threads: for short work, and as many again for long work.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        # One permit more than there are threads, so that no thread waits for the event loop.
        self._short_work = _FairPool(ThreadPool(num_threads, name), FairSemaphore(num_threads + 1))
        self._long_work = _FairPool(ThreadPool(num_threads, f"{name}-long"), FairSemaphore(num_threads))

    async def run(self, function: Callable[[], ResultT], *, num_chars: int, num_inputs: int = 1) -> ResultT:
        """Return the function's result. It is not started if the caller was cancelled before.

        num_chars: what the function reads. num_inputs: decides the lane of a request that names none.
        Raises EngineNotReady when the threads are closed before the function starts.
        """
        threads, semaphore = self._short_work if num_chars <= MAX_SHORT_CHARS else self._long_work
        flow = current_request().flow(num_inputs)
        await semaphore.acquire(flow, num_chars)
        # A function that has started keeps its thread until it returns, even if its caller is cancelled.
        return await threads.run(function, on_ended=lambda: semaphore.release(flow))

    async def convert(self, function: Callable[[], ResultT], *, num_bytes: int) -> ResultT:
        """Return the result of a function that converts or copies vectors, at once if they are small."""
        if num_bytes <= MAX_INLINE_BYTES:
            return function()
        return await self.run(function, num_chars=num_bytes // _BYTES_PER_CHAR)

    def close(self) -> None:
        """Drop functions that have not started; running ones finish in the background."""
        for threads, semaphore in (self._short_work, self._long_work):
            semaphore.close(pool_closed)
            threads.close()


class _FairPool(NamedTuple):
    """Threads, and the semaphore that decides the order in which their work starts."""

    threads: ThreadPool
    semaphore: FairSemaphore
