"""Load, start, change and stop the models of one app.

The lifespan of `app.py` runs it; routes and metrics reach the engines through it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace

from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine.array import AsyncEngineArray, Resolved
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.slot import load_on_thread
from infinity_emb.errors import (
    EngineNotReady,
    LoadFailed,
    ModelTooLarge,
    NameInUse,
    StartupError,
    UnknownModel,
)
from infinity_emb.types import Capability

logger = logging.getLogger("infinity_emb")

EngineSource = AsyncEngineArray | Callable[[], AsyncEngineArray]


class ServedModels:
    """The engines of one app, which exist once it has started."""

    def __init__(
        self, source: EngineSource, *, shutdown_timeout_s: float, is_strict_about_names: bool = False
    ) -> None:
        self._source = source
        self._is_strict_about_names = is_strict_about_names
        self._shutdown_timeout_s = shutdown_timeout_s
        self._array: AsyncEngineArray | None = None
        self.started_at = 0  # Unix time in seconds
        self.may_run_code = False  # whether the server was started with --trust-remote-code
        self.changing: set[str] = set()  # names of models being loaded, unloaded or reloaded
        # Awaited when other models are served, before the request that changed them is answered.
        self.on_change: Callable[[], Awaitable[None]] = _do_nothing

    @property
    def array(self) -> AsyncEngineArray:
        """The engines. Raises EngineNotReady before the app has started."""
        if self._array is None:
            raise EngineNotReady("the models are not loaded yet; try again later")
        return self._array

    @property
    def is_loaded(self) -> bool:
        """True once the app has started."""
        return self._array is not None

    @property
    def has_refused(self) -> bool:
        """True if a model has refused a request and not been seen to have room since."""
        return self._array is not None and any(engine.gate.admission.has_refused for engine in self._array)

    def resolve(self, model: str | None, capability: Capability) -> Resolved:
        """Return the engine for the requested model, or the default one for the task.

        Raises UnknownModel, and EngineNotReady before the app has started.
        """
        if model is None:
            return Resolved(self.array.default_for(capability), None)
        return self.array.resolve(model)

    def find(self, name: str) -> AsyncEmbeddingEngine:
        """Return the engine of a name or alias. Raises UnknownModel, even if only one model is served."""
        engine = self.array.find(name)
        if engine is None:
            raise self.array.unknown_model(name)
        return engine

    def guess_engine(self, model: object) -> AsyncEmbeddingEngine | None:
        """Return the engine that a request is probably for, or None.

        model: as in the request, not validated yet.
        """
        if self._array is None:
            return None
        if isinstance(model, str):
            with suppress(UnknownModel):
                return self._array.resolve(model).engine
        return self._array[0] if len(self._array) == 1 else None

    async def load(self, args: EngineArgs) -> AsyncEmbeddingEngine:
        """Load another model and serve it, without blocking the event loop.

        Raises NameInUse, LoadFailed, ModelTooLarge and EngineNotReady.
        """
        array = self.array
        with self._changing(args):
            for name in args.list_names():
                if name in (served for engine in array for served in engine.engine_args.list_names()):
                    raise NameInUse(f"a model is served as {name!r}; choose another name, or unload it first")
            with _translate_errors():
                engine = await load_on_thread(
                    lambda: AsyncEmbeddingEngine.from_args(replace(args, needs_trial=True)),
                    args.model_name_or_path,
                )
                if isinstance(engine, StartupError):
                    raise engine
                try:
                    await engine.astart()
                    array.add(engine)
                except BaseException:
                    await engine.slot.unload(drain_timeout_s=0)
                    raise
            await self.on_change()
        logger.info("model %r loaded", args.served_model_name)
        return engine

    async def unload(self, engine: AsyncEmbeddingEngine) -> None:
        """Stop serving a model: reject new requests, finish the accepted ones within the deadline.

        Raises NameInUse.
        """
        with self._changing(engine.engine_args):
            self.array.remove(engine)
            await self.on_change()
            await engine.slot.unload(drain_timeout_s=self._shutdown_timeout_s)

    async def reload(self, engine: AsyncEmbeddingEngine) -> None:
        """Reload a model while requests wait. Raises NameInUse, LoadFailed, ModelTooLarge, EngineNotReady."""
        with self._changing(engine.engine_args), _translate_errors():
            await engine.slot.reload(drain_timeout_s=self._shutdown_timeout_s)
            await self.on_change()

    @contextmanager
    def _changing(self, args: EngineArgs) -> Iterator[None]:
        """Allow one change at a time to the models with these names."""
        names = set(args.list_names())
        if busy := self.changing & names:
            raise NameInUse(f"model {min(busy)!r} is being loaded, unloaded or reloaded; try again later")
        self.changing |= names
        try:
            yield
        finally:
            self.changing -= names

    @asynccontextmanager
    async def running(self) -> AsyncIterator[AsyncEngineArray]:
        """Load and start the models; on exit finish accepted requests within the deadline."""
        array = await self._load()
        array.accepts_any_name = not self._is_strict_about_names
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
        # On a thread: loading takes seconds, and the event loop has to react to Ctrl-C.
        return await asyncio.to_thread(self._source)


async def _do_nothing() -> None:
    """Tell nobody: there is one process."""


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Translate errors that would end a starting server into errors of the admin API."""
    try:
        yield
    except ModelTooLarge:
        raise
    except StartupError as exc:
        raise LoadFailed(exc.reason) from exc
