"""Images and audio as a client gives them → decoded inputs: fetched concurrently, decoded on threads.

What a request may take decoded is limited as a whole: small files can be large images. Knows nothing of
models beyond the sampling rate of their clips.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from infinity_emb.backends.base import Clip, Picture
from infinity_emb.errors import BadInput, ImageCorruption
from infinity_emb.media import check_image_size, decode_audio, decode_image
from infinity_emb.media_sources import MediaFetcher

MediaT = TypeVar("MediaT")
# An image may take hundreds of megabytes while it is decoded, and a slow host a thread while it is looked up.
MAX_READ_AT_ONCE = 8
# What one request keeps in memory until it is computed: 768 MB of pixels; 230 MB of samples at 16 kHz.
MAX_REQUEST_PIXELS = 256_000_000
MAX_REQUEST_SECONDS = 3600
RunOnThread = Callable[[Callable[[], Any]], Awaitable[Any]]


class Allowance:
    """What the inputs of one request may take together; claimed on any thread, before decoding."""

    def __init__(self, limit: int, unit: str) -> None:
        self._limit = limit
        self._unit = unit
        self._left: float = limit
        self._lock = threading.Lock()

    def claim(self, amount: float) -> None:
        """Raises BadInput where the inputs so far and this one are too much."""
        with self._lock:
            self._left -= amount
            is_over = self._left < 0
        if is_over:
            raise BadInput(
                f"brings this request over its limit of {self._limit} {self._unit} in all;"
                " send fewer inputs at once, or smaller ones"
            )


class MediaReader:
    """Reads images and clips for one model. sampling_rate: of its clips, in Hz."""

    def __init__(self, sampling_rate: int | None) -> None:
        self._sampling_rate = sampling_rate
        self._fetcher = MediaFetcher()
        self._slots: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None

    async def read_images(self, sources: Sequence[Any], run_on_thread: RunOnThread) -> list[Picture]:
        """From URLs, data URIs, bytes and PIL images. Raises ImageCorruption and BadInput."""
        allowance = Allowance(MAX_REQUEST_PIXELS, "pixels")
        return await self._read_all(sources, self._read_image, allowance, run_on_thread)

    async def read_clips(self, sources: Sequence[Any], run_on_thread: RunOnThread) -> list[Clip]:
        """From URLs, data URIs and bytes. Raises AudioCorruption and BadInput."""
        allowance = Allowance(MAX_REQUEST_SECONDS, "seconds")
        return await self._read_all(sources, self._read_clip, allowance, run_on_thread)

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
