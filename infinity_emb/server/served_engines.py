"""The engines of one app: loaded and started when it starts, drained when it stops.

Knows nothing of routes. The lifespan of `app.py` runs it; routes and metrics reach the engines through it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from infinity_emb.engine_array import AsyncEngineArray, Resolved
from infinity_emb.errors import EngineNotReady
from infinity_emb.primitives import Capability

EngineSource = AsyncEngineArray | Callable[[], AsyncEngineArray]


class ServedEngines:
    """An engine array that exists once the app has started."""

    def __init__(self, source: EngineSource, *, shutdown_timeout_s: float) -> None:
        self._source = source
        self._shutdown_timeout_s = shutdown_timeout_s
        self._array: AsyncEngineArray | None = None
        self.started_at = 0  # Unix seconds

    @property
    def array(self) -> AsyncEngineArray:
        """Raises EngineNotReady before the app has started."""
        if self._array is None:
            raise EngineNotReady("the models are not loaded yet; try again later")
        return self._array

    @property
    def is_loaded(self) -> bool:
        """Whether `array` can be read."""
        return self._array is not None

    def choose(self, model: str | None, capability: Capability) -> Resolved:
        """The engine for a request that names a model, or none.

        Raises UnknownModel, and EngineNotReady before the app has started.
        """
        if model is None:
            return Resolved(self.array.first_with(capability), None)
        return self.array.resolve(model)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[AsyncEngineArray]:
        """Load where needed, start; on leaving finish what was accepted within the deadline."""
        array = await self._load()
        try:
            await array.astart()
            self._array, self.started_at = array, int(time.time())
            yield array
        finally:
            await asyncio.gather(
                *(engine.astop(drain_timeout_s=self._shutdown_timeout_s) for engine in array)
            )

    async def _load(self) -> AsyncEngineArray:
        if isinstance(self._source, AsyncEngineArray):
            return self._source
        # On a thread: a model takes seconds to load, and the event loop must see a Ctrl-C meanwhile.
        return await asyncio.to_thread(self._source)
