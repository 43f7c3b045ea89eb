"""Fetch and decode media so that no client occupies all decoders, downloads or look-ups."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from infinity_emb.hardware import num_usable_cpus
from infinity_emb.preprocessing.media.decoder import Decoder, DecoderProcess
from infinity_emb.scheduling.fair_semaphore import FairSemaphore
from infinity_emb.scheduling.request_context import current_request
from infinity_emb.scheduling.thread_pool import ThreadPool, pool_closed

ResultT = TypeVar("ResultT")

MAX_DECODERS = 4
# Downloads that are running or waiting to be decoded, at most 32 MB each; and look-ups, each of which
# occupies a thread until the operating system gives up on it.
MAX_FETCHES, MAX_FETCHES_PER_CLIENT = 24, 6
MAX_LOOKUPS, MAX_LOOKUPS_PER_CLIENT = 32, 4


class MediaWorkers:
    """Share the decoders and downloads of one model: a single client always leaves a decoder for others."""

    def __init__(self, num_decoders: int = 0) -> None:
        num_decoders = num_decoders or max(2, min(MAX_DECODERS, num_usable_cpus()))
        self._threads = ThreadPool(num_decoders, "infinity-media")
        self._decoders = [DecoderProcess() for _ in range(num_decoders)]
        self._idle = list(self._decoders)
        self._is_closed = False
        self._lock = threading.Lock()
        self._decoding = FairSemaphore(num_decoders, max_per_client=max(1, num_decoders - 1))
        self._fetching = FairSemaphore(MAX_FETCHES, max_per_client=MAX_FETCHES_PER_CLIENT)

    @property
    def client(self) -> str:
        """The client of the running request."""
        return current_request().client

    async def decode(self, function: Callable[[Decoder], ResultT]) -> ResultT:
        """Call a function with a decoder, on a thread. If the caller is cancelled, the decoder is killed.

        Raises EngineNotReady when the workers are closed before the function starts.
        """
        flow = current_request().flow(1)
        await self._decoding.acquire(flow, 1)
        decoder = self._idle.pop()
        is_held = True  # until it is put back: the next caller may have it by then

        def end() -> None:
            nonlocal is_held
            is_held = False
            self._put_back(decoder)
            self._decoding.release(flow)

        try:
            return await self._threads.run(lambda: function(decoder), on_ended=end)
        except asyncio.CancelledError:
            if is_held:
                decoder.kill()
            raise

    def _put_back(self, decoder: DecoderProcess) -> None:
        """Take back a decoder from the thread that used it."""
        with self._lock:
            self._idle.append(decoder)
            if self._is_closed:
                decoder.close()

    @asynccontextmanager
    async def fetch_permit(self) -> AsyncIterator[None]:
        """Wait until the client may download one more file, and count it until the end of the block."""
        flow = current_request().flow(1)
        await self._fetching.acquire(flow, 1)
        try:
            yield
        finally:
            self._fetching.release(flow)

    def close(self) -> None:
        """Stop the decoders; files that are being decoded are refused."""
        for semaphore in (self._decoding, self._fetching):
            semaphore.close(pool_closed)
        self._threads.close()
        with self._lock:
            self._is_closed = True
            for decoder in self._decoders:
                # The thread that uses it closes it.
                decoder.close() if decoder in self._idle else decoder.kill()


class HostResolver:
    """Resolve host names on separate threads, so that a silent name server holds up one client only."""

    def __init__(self) -> None:
        self._threads = ThreadPool(MAX_LOOKUPS, "infinity-resolver")
        self._semaphore = FairSemaphore(MAX_LOOKUPS, max_per_client=MAX_LOOKUPS_PER_CLIENT)

    async def __call__(self, host: str, port: int) -> list[str]:
        """Resolve with the operating system. Raises OSError."""
        flow = current_request().flow(1)
        await self._semaphore.acquire(flow, 1)
        # A look-up that outlasts its caller keeps its permit.
        infos = await self._threads.run(
            lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM),
            on_ended=lambda: self._semaphore.release(flow),
        )
        return [str(address[0]) for *_, address in infos]
