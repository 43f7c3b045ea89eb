"""Keep one model loaded while it is in use: unload it when idle, load it again for the next request.

One task at a time loads or unloads; requests that need the model wait for that task.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from infinity_emb.backends.base import LoadedModel
from infinity_emb.concurrency import ExclusiveTask, ForkDetector, run_on_daemon_thread
from infinity_emb.engine.garbage import collect_all, freeze_new_objects
from infinity_emb.engine.host import ModelHost, OpenModel
from infinity_emb.errors import EngineNotReady, StartupError

logger = logging.getLogger("infinity_emb")

DRAIN_TIMEOUT_S = 30.0

LoadedT = TypeVar("LoadedT")


class ModelSlot:
    """Load, unload and reload one model, for one event loop at a time.

    model: as it was loaded first.
    load: loads it again; called on a thread.
    idle_unload_s: seconds without a request after which the model is unloaded; 0 never unloads.
    """

    def __init__(
        self,
        name: str,
        model: LoadedModel,
        load: Callable[[], LoadedModel],
        host: ModelHost,
        *,
        idle_unload_s: float,
    ) -> None:
        self.name = name
        self.info = model.info
        self.host = host
        self.num_active = 0  # requests that use the model
        self.model: LoadedModel | None = model  # None while it is not in memory
        self.open_model: OpenModel | None = None  # None while a request would have to wait for it
        self._load = load
        self._idle_unload_s = idle_unload_s
        self._is_started = False
        self._was_started = False
        self._process = ForkDetector()
        self._idle: asyncio.Future[None] | None = None  # while closing: done with the last active request
        self._change: ExclusiveTask[StartupError | None] = ExclusiveTask()  # a load, an unload or both
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_loaded(self) -> bool:
        """Return true while the model is in memory."""
        return self.model is not None

    @property
    def is_running(self) -> bool:
        """Return true when a new request would be computed, after a load if need be."""
        if not self._is_started or self._process.is_forked:
            return False
        return self.open_model is None or self.host.pool.is_alive

    @property
    def is_ready(self) -> bool:
        """Return true when a new request would be computed without waiting for a restarting thread."""
        return self._is_started and (self.open_model is None or self.host.pool.is_ready)

    @property
    def is_dead(self) -> bool:
        """Return true when a worker thread has crashed for good; only a restart of the process helps."""
        return self._is_started and self.open_model is not None and not self.host.pool.is_alive

    def start(self) -> None:
        """Start the worker threads; a model that is not loaded is loaded by the first request.

        Raises EngineNotReady while worker threads are running, here or in the process that was forked.
        """
        if self._is_started and self._process.is_forked:
            raise self.not_ready()
        self._process = ForkDetector()
        if self.model is not None:
            self._open(self.model)
        self._is_started = self._was_started = True

    async def stop(self, drain_timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Finish accepted requests within the timeout, fail the rest and stop the threads."""
        if not self._is_started or self._process.is_forked:
            return
        started_s = time.monotonic()
        self._is_started = False  # no other load begins from now on
        await self._change.stop(drain_timeout_s)
        await self._close(max(0.0, drain_timeout_s - (time.monotonic() - started_s)))

    async def unload(self, drain_timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Stop and free the model's memory. After another `start` the first request loads it."""
        await self.stop(drain_timeout_s)
        await self._change.wait()
        await asyncio.wait([self._change.begin(self._unload(drain_timeout_s))])

    async def reload(self, drain_timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Unload the model and load it again while requests wait. Raises StartupError and EngineNotReady.

        When loading fails, the next request tries again.
        """
        if not self._is_started:
            raise self.not_ready()
        await self._change.wait()
        if not self._is_started:
            raise self.not_ready()
        change = self._change.begin(self._reload(drain_timeout_s))
        await asyncio.wait([change])
        if change.cancelled():
            raise self.not_ready()
        if (failure := change.result()) is not None:
            raise failure

    async def ensure_open(self) -> None:
        """Return when the model is open, after loading it if need be. Raises EngineNotReady."""
        while self.open_model is None:
            if not self._is_started and self._change.task is None:
                raise self.not_ready()
            change = self._change.task or self._change.begin(self._load_and_open())
            # Unlike `await change`, this does not cancel the change with the request.
            await asyncio.wait([change])
            if change.cancelled():
                raise self.not_ready()
            if (failure := change.exception() or change.result()) is not None:
                raise EngineNotReady(
                    f"model {self.name!r} could not be loaded; the next request tries again: {failure}"
                ) from failure

    @contextmanager
    def use(self, open_model: OpenModel | None = None) -> Iterator[OpenModel]:
        """Keep the model open inside the block. Call `ensure_open` right before, without a pause.

        open_model: which another block uses now; it may be closing.
        """
        open_model = open_model or self.open_model
        assert open_model is not None, "the model is not open"
        self.num_active += 1
        self._cancel_timer()
        try:
            yield open_model
        finally:
            self.num_active -= 1
            if self._idle is not None and not self.num_active and not self._idle.done():
                self._idle.set_result(None)
            self._start_timer()

    def unload_if_idle(self) -> None:
        """Begin to unload the model unless a request uses it."""
        if self._change.task is None and self.open_model is not None and not self.num_active:
            self._change.begin(self._unload(DRAIN_TIMEOUT_S))

    def not_ready(self) -> EngineNotReady:
        """Return the error for a request that comes too early or too late, or in a forked process."""
        if self._is_started and self._process.is_forked:
            return EngineNotReady(
                f"model {self.name!r} was started before this process was forked, and its threads do not"
                " exist here; create the engine in each process, or start processes with 'spawn'"
            )
        if not self._was_started:
            return EngineNotReady(
                f"model {self.name!r} is not started; use `async with engine:`, or `await engine.astart()`"
                " before the first request"
            )
        return EngineNotReady(f"model {self.name!r} was stopped, is shutting down or has crashed")

    async def _reload(self, drain_timeout_s: float) -> StartupError | None:
        await self._unload(drain_timeout_s)
        return await self._load_and_open()

    async def _unload(self, drain_timeout_s: float) -> None:
        await self._close(drain_timeout_s)
        if self.model is None:
            return
        if not self.host.release_model():
            logger.error("cannot unload %r: a worker thread is still running", self.name)
            return
        free_memory, self.model = self.model.free_memory, None
        await run_on_daemon_thread(lambda: _collect_garbage(free_memory), "infinity-unloader")
        logger.info("model %r unloaded", self.name)

    async def _load_and_open(self) -> StartupError | None:
        """Return the failure instead of raising it, as no request may be waiting for this task any more."""
        started_s = time.monotonic()
        if self.model is None:
            loaded = await load_on_thread(self._load, self.name)
            if isinstance(loaded, StartupError):
                logger.error("cannot load model %r: %s", self.name, loaded)
                return loaded
            self.model = loaded
            logger.info("model %r loaded again in %.1f s", self.name, time.monotonic() - started_s)
        self._open(self.model)
        return None

    def _open(self, model: LoadedModel) -> None:
        self.open_model = self.host.open(model)
        self.info = model.info
        self._start_timer()

    async def _close(self, drain_timeout_s: float) -> None:
        self._cancel_timer()
        if self.open_model is not None:
            self.open_model = None
            self._idle = asyncio.get_running_loop().create_future()
            if not self.num_active:
                self._idle.set_result(None)
            await self.host.close(self._idle, drain_timeout_s)

    def _start_timer(self) -> None:
        if self._idle_unload_s and self.open_model is not None and not self.num_active:
            self._timer = asyncio.get_running_loop().call_later(self._idle_unload_s, self.unload_if_idle)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def load_on_thread(load: Callable[[], LoadedT], name: str) -> LoadedT | StartupError:
    """Return what `load` returns, or why it failed; a failed load leaves nothing in memory."""
    return await run_on_daemon_thread(lambda: _try_to_load(load, name), "infinity-loader")


def _try_to_load(load: Callable[[], LoadedT], name: str) -> LoadedT | StartupError:
    try:
        loaded = load()
        freeze_new_objects()
        return loaded
    except StartupError as exc:
        failure = type(exc)(exc.reason)
    except Exception as exc:  # noqa: BLE001 - a model's own code may raise anything
        failure = StartupError(f"model {name!r} could not be loaded: {type(exc).__name__}: {str(exc)[:400]}")
    # Not inside `except`, where the exception's frames keep the model alive.
    collect_all()
    return failure


def _collect_garbage(free_memory: Callable[[], None]) -> None:
    """Free models that are part of reference cycles, then the device memory that they held."""
    collect_all()
    free_memory()
