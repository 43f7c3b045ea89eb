"""The engines of one app: loaded and started when it starts, drained when it stops, some added meanwhile.

Knows nothing of routes. The lifespan of `app.py` runs it; routes and metrics reach the engines through it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from infinity_emb.config import EngineArgs
from infinity_emb.engine import AsyncEmbeddingEngine
from infinity_emb.engine_array import AsyncEngineArray, Resolved
from infinity_emb.errors import (
    EngineNotReady,
    LoadFailed,
    ModelTooLarge,
    NameInUse,
    StartupError,
    UnknownModel,
)
from infinity_emb.primitives import Capability
from infinity_emb.residence import load_on_own_thread

logger = logging.getLogger("infinity_emb")

EngineSource = AsyncEngineArray | Callable[[], AsyncEngineArray]


class ServedEngines:
    """An engine array that exists once the app has started."""

    def __init__(self, source: EngineSource, *, shutdown_timeout_s: float) -> None:
        self._source = source
        self._shutdown_timeout_s = shutdown_timeout_s
        self._array: AsyncEngineArray | None = None
        self.started_at = 0  # Unix seconds
        self.may_run_code = False  # whether some model may bring code, as the server was started
        self.changing: set[str] = set()  # names of models that are being loaded, unloaded or reloaded

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

    def check_room(self, model: object) -> None:
        """Raises Overloaded where a request would be refused, whatever it says besides.

        model: as it names one; of any type. It may turn out to be wrong later, where there is room.
        """
        if self._array is None:
            return
        with suppress(UnknownModel):
            if len(self._array) == 1:
                self._array[0].check_room()
            elif isinstance(model, str):
                self._array.resolve(model).engine.check_room()

    async def load(self, args: EngineArgs) -> AsyncEmbeddingEngine:
        """Load one more model and serve it; the event loop stays free.

        Raises NameInUse, LoadFailed, ModelTooLarge and EngineNotReady.
        """
        array = self.array
        with self._changes(args):
            for name in _names_of(args):
                if name in (served for engine in array for served in _names_of(engine.engine_args)):
                    raise NameInUse(f"a model is served as {name!r}; choose another name, or unload it first")
            with _translated():
                engine = await load_on_own_thread(
                    lambda: AsyncEmbeddingEngine.from_args(args), args.model_name_or_path
                )
                if isinstance(engine, StartupError):
                    raise engine
                try:
                    await engine.astart()
                    array.add(engine)
                except BaseException:
                    await engine.aunload(drain_timeout_s=0)
                    raise
        logger.info("model %r is loaded and served", args.served_model_name)
        return engine

    async def unload(self, engine: AsyncEmbeddingEngine) -> None:
        """Serve it no longer: refuse new requests, finish the accepted ones within the deadline.

        Raises NameInUse.
        """
        with self._changes(engine.engine_args):
            self.array.remove(engine)
            await engine.aunload(drain_timeout_s=self._shutdown_timeout_s)

    async def reload(self, engine: AsyncEmbeddingEngine) -> None:
        """Load it anew; requests wait. Raises NameInUse, LoadFailed, ModelTooLarge and EngineNotReady."""
        with self._changes(engine.engine_args), _translated():
            await engine.areload(drain_timeout_s=self._shutdown_timeout_s)

    @contextmanager
    def _changes(self, args: EngineArgs) -> Iterator[None]:
        """One change at a time to whatever has one of these names."""
        names = _names_of(args)
        if busy := self.changing & names:
            raise NameInUse(f"model {min(busy)!r} is being loaded, unloaded or reloaded; try again later")
        self.changing |= names
        try:
            yield
        finally:
            self.changing -= names

    @asynccontextmanager
    async def running(self) -> AsyncIterator[AsyncEngineArray]:
        """Load where needed, start; on leaving finish what was accepted within the deadline."""
        array = await self._load()
        try:
            await array.astart()
            self._array, self.started_at = array, int(time.time())
            self.may_run_code = any(engine.engine_args.trust_remote_code for engine in array)
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


def _names_of(args: EngineArgs) -> set[str]:
    return {args.served_model_name, *args.served_model_aliases}


@contextmanager
def _translated() -> Iterator[None]:
    """What would end a server that starts is here an answer to an administrator."""
    try:
        yield
    except ModelTooLarge:
        raise
    except StartupError as exc:
        raise LoadFailed(exc.reason) from exc
