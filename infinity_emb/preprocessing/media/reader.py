"""Read the images and audio clips of a request: fetch and decode them concurrently, fairly among clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from infinity_emb.config.limits import MediaLimits
from infinity_emb.errors import BadInput, ImageCorruption
from infinity_emb.items import AudioInput, ImageInput
from infinity_emb.preprocessing.media.budget import RequestBudget, SharedBudget
from infinity_emb.preprocessing.media.decode import check_image_size
from infinity_emb.preprocessing.media.decoder import Decoder
from infinity_emb.preprocessing.media.fetch import MediaFetcher, Resolver, is_inline, resolve_by_system
from infinity_emb.preprocessing.media.url_policy import parse_hosts

MediaT = TypeVar("MediaT")
ResultT = TypeVar("ResultT")
# Limits of one request until it is computed: 768 MB of pixels; 230 MB of samples at 16 kHz.
MAX_REQUEST_PIXELS = 256_000_000
MAX_REQUEST_SECONDS = 3600


class MediaWorkers(Protocol):
    """Share decoders and downloads among clients."""

    @property
    def client(self) -> str:
        """The client of the running request."""

    async def decode(self, function: Callable[[Decoder], ResultT]) -> ResultT:
        """Call a function with a decoder, off the event loop."""

    def fetch_permit(self) -> AbstractAsyncContextManager[None]:
        """Wait for the right to download a file, and hold it until the end of the block."""


class MediaReader:
    """Read images and clips for one model.

    sampling_rate: of the model's clips, in Hz; None if it takes no audio.
    limits: hosts to fetch from, and how much all requests may hold together until they are computed.
    max_request_pixels, max_request_seconds: how much one request may hold.
    resolve: see `MediaFetcher`.
    """

    def __init__(
        self,
        sampling_rate: int | None,
        limits: MediaLimits | None = None,
        *,
        resolve: Resolver = resolve_by_system,
        max_request_pixels: int = MAX_REQUEST_PIXELS,
        max_request_seconds: int = MAX_REQUEST_SECONDS,
    ) -> None:
        limits = limits or MediaLimits()
        self._sampling_rate = sampling_rate
        self._max_request_pixels = max_request_pixels
        self._max_request_seconds = max_request_seconds
        self._pixels = SharedBudget(limits.max_queue_pixels, "pixels")
        self._seconds = SharedBudget(limits.max_queue_audio_s, "seconds")
        self._fetcher = MediaFetcher(is_allowed=parse_hosts(limits.media_hosts), resolve=resolve)

    @asynccontextmanager
    async def images(self, sources: Sequence[Any], workers: MediaWorkers) -> AsyncIterator[list[ImageInput]]:
        """Read URLs, data URIs, bytes and PIL images, and hold their budget until the end of the block.

        Raises ImageCorruption, BadInput and Overloaded.
        """
        with closing(RequestBudget(self._max_request_pixels, self._pixels, workers.client)) as budget:
            yield await self._read_all(sources, self._read_image, budget, workers)

    @asynccontextmanager
    async def clips(self, sources: Sequence[Any], workers: MediaWorkers) -> AsyncIterator[list[AudioInput]]:
        """Read URLs, data URIs and bytes, and hold their budget until the end of the block.

        Raises AudioCorruption, BadInput and Overloaded.
        """
        with closing(RequestBudget(self._max_request_seconds, self._seconds, workers.client)) as budget:
            yield await self._read_all(sources, self._read_clip, budget, workers)

    async def _read_all(
        self,
        sources: Sequence[Any],
        read: Callable[[Any, RequestBudget, MediaWorkers], Awaitable[MediaT]],
        budget: RequestBudget,
        workers: MediaWorkers,
    ) -> list[MediaT]:
        async def read_at(position: int, source: Any) -> MediaT:
            try:
                return await read(source, budget, workers)
            except BadInput as exc:
                raise exc.at_position(position) from exc

        tasks = [asyncio.ensure_future(read_at(position, source)) for position, source in enumerate(sources)]
        try:
            for task in tasks:
                await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # retrieves the other tasks' exceptions
        return [task.result() for task in tasks]

    async def _read_image(self, source: Any, budget: RequestBudget, workers: MediaWorkers) -> ImageInput:
        if hasattr(source, "convert"):  # a PIL image
            check_image_size(source.width, source.height)
            budget.reserve(source.width * source.height)
            return ImageInput(await workers.decode(lambda _: _read_pixels(source)))
        async with self._load(source, workers) as load:
            return ImageInput(
                await workers.decode(lambda decoder: decoder.decode_image(load(), budget.reserve))
            )

    async def _read_clip(self, source: Any, budget: RequestBudget, workers: MediaWorkers) -> AudioInput:
        assert self._sampling_rate is not None, "the model takes no audio"
        rate = self._sampling_rate
        async with self._load(source, workers) as load:
            return AudioInput(
                await workers.decode(lambda decoder: decoder.decode_audio(load(), rate, budget.reserve))
            )

    @asynccontextmanager
    async def _load(self, source: Any, workers: MediaWorkers) -> AsyncIterator[Callable[[], bytes]]:
        """Yield a function that returns the content; for a data URI, it takes time.

        A downloaded file counts as a download until it is decoded, since it is held in memory.
        """
        if not isinstance(source, (str, bytes)):
            raise BadInput(f"is {type(source).__name__}; give a URL, a data URI or the bytes of a file")
        if is_inline(source):
            yield lambda: self._fetcher.read_inline(source)
            return
        async with workers.fetch_permit():
            content = await self._fetcher.fetch(source)
            yield lambda: content


def _read_pixels(image: Any) -> npt.NDArray[np.uint8]:
    """Convert a PIL image to (H, W, 3) RGB; Pillow reads the file only at this point."""
    try:
        return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as exc:
        raise ImageCorruption(f"cannot be read as an image: {exc}; open it again from a whole file") from exc
