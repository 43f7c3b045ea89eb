"""Images and audio as a client gives them → decoded inputs: fetched concurrently, decoded on threads.

What a request may take decoded is limited as a whole, and what all requests take together: small files can be
large images. Knows nothing of models beyond the sampling rate of their clips.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from infinity_emb.backends.base import Clip, Picture
from infinity_emb.errors import BadInput, ImageCorruption, Overloaded
from infinity_emb.media import check_image_size, decode_audio, decode_image
from infinity_emb.media_sources import MediaFetcher

MediaT = TypeVar("MediaT")
# An image may take hundreds of megabytes while it is decoded, and a slow host a thread while it is looked up.
MAX_READ_AT_ONCE = 8
# What one request keeps in memory until it is computed: 768 MB of pixels; 230 MB of samples at 16 kHz.
MAX_REQUEST_PIXELS = 256_000_000
MAX_REQUEST_SECONDS = 3600
RunOnThread = Callable[[Callable[[], Any]], Awaitable[Any]]


class SharedRoom:
    """What the inputs of all requests may take together."""

    def __init__(self, limit: int, unit: str) -> None:
        self.limit = limit
        self.unit = unit
        self._taken = 0.0
        self._lock = threading.Lock()

    def take(self, amount: float) -> None:
        """Raises Overloaded where there is no room now."""
        with self._lock:
            if self._taken + amount > self.limit:
                raise Overloaded(
                    f"inputs of {self._taken:.0f} {self.unit} wait already, the limit is {self.limit};"
                    " try again later"
                )
            self._taken += amount

    def give_back(self, amount: float) -> None:
        """They have been computed, or never will be."""
        with self._lock:
            self._taken -= amount


class Allowance:
    """What the inputs of one request may take together; claimed on any thread, before decoding."""

    def __init__(self, limit: int, shared: SharedRoom) -> None:
        self._limit = min(limit, shared.limit)
        self._shared = shared
        self._taken = 0.0
        self._is_open = True
        self._lock = threading.Lock()

    def claim(self, amount: float) -> None:
        """Raises BadInput where the inputs so far and this one are too much, and Overloaded."""
        with self._lock:
            if not self._is_open:  # a thread may come to it after the client has left
                raise BadInput("belongs to a request that has ended")
            if self._taken + amount > self._limit:
                raise BadInput(
                    f"brings this request over its limit of {self._limit} {self._shared.unit} in all;"
                    " send fewer inputs at once, or smaller ones"
                )
            self._shared.take(amount)
            self._taken += amount

    def close(self) -> None:
        """Give everything back."""
        with self._lock:
            self._is_open = False
            self._shared.give_back(self._taken)


class MediaReader:
    """Reads images and clips for one model.

    sampling_rate: of its clips, in Hz. is_allowed: which hosts they are fetched from.
    max_pixels, max_seconds: of all requests together, until they are computed.
    """

    def __init__(
        self,
        sampling_rate: int | None,
        *,
        max_pixels: int = 4 * MAX_REQUEST_PIXELS,
        max_seconds: int = 4 * MAX_REQUEST_SECONDS,
        is_allowed: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._sampling_rate = sampling_rate
        self._pixels = SharedRoom(max_pixels, "pixels")
        self._seconds = SharedRoom(max_seconds, "seconds")
        self._fetcher = MediaFetcher(is_allowed=is_allowed)
        self._slots: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None

    @asynccontextmanager
    async def images(
        self, sources: Sequence[Any], run_on_thread: RunOnThread
    ) -> AsyncIterator[list[Picture]]:
        """From URLs, data URIs, bytes and PIL images; they have their room until the end of the block.

        Raises ImageCorruption, BadInput and Overloaded.
        """
        with closing(Allowance(MAX_REQUEST_PIXELS, self._pixels)) as allowance:
            yield await self._read_all(sources, self._read_image, allowance, run_on_thread)

    @asynccontextmanager
    async def clips(self, sources: Sequence[Any], run_on_thread: RunOnThread) -> AsyncIterator[list[Clip]]:
        """From URLs, data URIs and bytes, likewise. Raises AudioCorruption, BadInput and Overloaded."""
        with closing(Allowance(MAX_REQUEST_SECONDS, self._seconds)) as allowance:
            yield await self._read_all(sources, self._read_clip, allowance, run_on_thread)

    async def _read_all(
        self,
        sources: Sequence[Any],
        read: Callable[[Any, Allowance, RunOnThread], Awaitable[MediaT]],
        allowance: Allowance,
        run_on_thread: RunOnThread,
    ) -> list[MediaT]:
        slots = self._slots_of_this_loop()

        async def read_in_turn(source: Any) -> MediaT:
            async with slots:
                return await read(source, allowance, run_on_thread)

        tasks = [asyncio.ensure_future(read_in_turn(source)) for source in sources]
        try:
            for position, task in enumerate(tasks):
                try:
                    await task
                except BadInput as exc:
                    raise (exc if exc.position is not None else exc.moved_to(position)) from exc
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # the others' errors are nobody's
        return [task.result() for task in tasks]

    def _slots_of_this_loop(self) -> asyncio.Semaphore:
        """An engine may outlive the event loop that it was first used on; a semaphore does not."""
        loop = asyncio.get_running_loop()
        if self._slots is None or self._slots[0] is not loop:
            self._slots = loop, asyncio.Semaphore(MAX_READ_AT_ONCE)
        return self._slots[1]

    async def _read_image(self, source: Any, allowance: Allowance, run_on_thread: RunOnThread) -> Picture:
        if hasattr(source, "convert"):  # a PIL image
            check_image_size(source.width, source.height)
            allowance.claim(source.width * source.height)
            return Picture(await run_on_thread(lambda: _pixels_of(source)))
        data = await self._fetcher.fetch(_checked(source))
        return Picture(await run_on_thread(lambda: np.asarray(decode_image(data, claim=allowance.claim))))

    async def _read_clip(self, source: Any, allowance: Allowance, run_on_thread: RunOnThread) -> Clip:
        assert self._sampling_rate is not None, "only asked of a model that takes audio"
        rate = self._sampling_rate
        data = await self._fetcher.fetch(_checked(source))
        return Clip(
            await run_on_thread(lambda: decode_audio(data, sampling_rate=rate, claim=allowance.claim))
        )


def _pixels_of(image: Any) -> npt.NDArray[np.uint8]:
    """Of a PIL image; Pillow reads a file only when its pixels are asked for."""
    try:
        return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as exc:
        raise ImageCorruption(f"cannot be read as an image: {exc}; open it again from a whole file") from exc


def _checked(source: Any) -> str | bytes:
    if not isinstance(source, (str, bytes)):
        raise BadInput(f"is {type(source).__name__}; give a URL, a data URI or the bytes of a file")
    return source
