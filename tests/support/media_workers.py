"""Decode media in this process, where a test sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from infinity_emb.preprocessing.media.decode import decode_audio, decode_image


class InProcessDecoder:
    def decode_image(self, data: bytes, reserve: Callable[[float], None]) -> Any:
        return np.asarray(decode_image(data, reserve=reserve))

    def decode_audio(self, data: bytes, sampling_rate: int, reserve: Callable[[float], None]) -> Any:
        return decode_audio(data, sampling_rate=sampling_rate, reserve=reserve)


class InProcessWorkers:
    """Workers without limits.

    run_on_thread: calls a function off the event loop.
    """

    def __init__(self, run_on_thread: Callable[..., Any] = asyncio.to_thread) -> None:
        self._run_on_thread = run_on_thread
        self.num_fetching = 0
        self.client = ""

    async def decode(self, function: Callable[..., Any]) -> Any:
        return await self._run_on_thread(lambda: function(InProcessDecoder()))

    @asynccontextmanager
    async def fetch_permit(self) -> AsyncIterator[None]:
        self.num_fetching += 1
        yield
