"""Whether one model is in memory: given up when nobody asks for it, loaded again for who asks next.

One change at a time, by one task, which all who need the model wait for. Knows nothing of requests or of what
is computed: `running_model.py` says how computing begins and ends.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from infinity_emb.backends.base import LoadedModel
from infinity_emb.completion import run_on_own_thread
from infinity_emb.errors import EngineNotReady, StartupError

logger = logging.getLogger("infinity_emb")

# Of an idle model, on whose device there may be inputs of requests that were cancelled.
_IDLE_DRAIN_S = 30.0

LoadedT = TypeVar("LoadedT")


class Computing(Protocol):
    """How a model is put to work, and how that ends."""

    def open(self, model: LoadedModel) -> None:
        """Start the threads."""

    async def close(self, drain_timeout_s: float) -> None:
        """Wait for whoever is inside, within the deadline; then end the threads."""

    def let_go(self) -> bool:
        """Forget the model; False where a thread has not ended, which still needs it."""


class Residence:
    """The place of one model, for one event loop at a time.

    model: as it was loaded first; None where it is not in memory.
    load: makes it again; called on a thread of its own.
    idle_unload_s: seconds without anybody inside after which it is given up; 0 keeps it.
    """

    def __init__(
        self,
        name: str,
        model: LoadedModel,
        load: Callable[[], LoadedModel],
        computing: Computing,
        *,
        idle_unload_s: float,
    ) -> None:
        self.model: LoadedModel | None = model
        self.is_open = False
        self.num_inside = 0
        self._name = name
        self._load = load
        self._computing = computing
        self._idle_unload_s = idle_unload_s
        self._is_stopping = False
        self._change: asyncio.Task[StartupError | None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to compute, where the model is here; otherwise who enters first has it loaded."""
        self._is_stopping = False
        if self.model is not None:
            self._open(self.model)

    async def stop(self, drain_timeout_s: float) -> None:
        """Let a change come to its end, and those inside leave, within the deadline; end the threads."""
        started_s = time.monotonic()
        self._is_stopping = True  # nobody has it loaded again
        if self._change is not None:
            change = self._change
            await asyncio.wait([change], timeout=drain_timeout_s)
            change.cancel()  # where it has not ended
            await asyncio.wait([change])
        await self._close(max(0.0, drain_timeout_s - (time.monotonic() - started_s)))

    async def enter(self) -> None:
        """Come in, until `leave`; where the model is not here, wait until it is. Raises EngineNotReady."""
        while not self.is_open:
            if self._is_stopping and self._change is None:
                raise self._shutting_down()
            change = self._change or self._begin(self._load_and_open())
            # Unlike awaiting it, this leaves it alone where the one who waits is cancelled.
            await asyncio.wait([change])
            if change.cancelled():
                raise self._shutting_down()
            if (failure := change.result()) is not None:
                raise EngineNotReady(
                    f"model {self._name!r} could not be loaded again, the next request tries it once more:"
                    f" {failure.reason}"
                )
        self.num_inside += 1
        self._forget_timer()

    def leave(self) -> None:
        """The end of what `enter` began."""
        self.num_inside -= 1
        self._watch_idleness()

    async def reload(self, drain_timeout_s: float) -> None:
        """Give the model up and load it anew; who comes meanwhile waits for it. Raises StartupError.

        Where that fails the model stays away until somebody enters.
        """
        await self._settled()
        if self._is_stopping:
            raise self._shutting_down()
        change = self._begin(self._reload(drain_timeout_s))
        await asyncio.wait([change])
        if change.cancelled():
            raise self._shutting_down()
        if (failure := change.result()) is not None:
            raise failure

    async def give_up(self, drain_timeout_s: float) -> None:
        """Have the model out of memory, until somebody enters."""
        await self._settled()
        await asyncio.wait([self._begin(self._unload(drain_timeout_s))])

    def _shutting_down(self) -> EngineNotReady:
        return EngineNotReady(f"model {self._name!r} is shutting down and was not loaded again")

    async def _settled(self) -> None:
        while self._change is not None:
            await asyncio.wait([self._change])

    def _begin(self, change: Coroutine[Any, Any, StartupError | None]) -> asyncio.Task[StartupError | None]:
        self._change = asyncio.ensure_future(change)
        self._change.add_done_callback(self._end)  # before the callbacks of those who wait
        return self._change

    def _end(self, _: asyncio.Task[StartupError | None]) -> None:
        self._change = None

    async def _reload(self, drain_timeout_s: float) -> StartupError | None:
        await self._unload(drain_timeout_s)
        return await self._load_and_open()

    async def _unload(self, drain_timeout_s: float) -> None:
        await self._close(drain_timeout_s)
        if self.model is None:
            return
        free_memory = self.model.free_memory
        if not self._computing.let_go():
            logger.error("model %r stays in memory: a device thread does not end", self._name)
            return
        self.model = None
        await run_on_own_thread(lambda: _collect(free_memory), "infinity-unloader")
        logger.info("model %r is unloaded", self._name)

    async def _load_and_open(self) -> StartupError | None:
        """The failure is returned: it may be that nobody waits for it any more."""
        started_s = time.monotonic()
        if self.model is None:
            outcome = await load_on_own_thread(self._load, self._name)
            if isinstance(outcome, StartupError):
                logger.error("model %r could not be loaded: %s", self._name, outcome)
                return outcome
            self.model = outcome
            logger.info("model %r is loaded again, in %.1f s", self._name, time.monotonic() - started_s)
        self._open(self.model)
        return None

    def _open(self, model: LoadedModel) -> None:
        self._computing.open(model)
        self.is_open = True
        self._watch_idleness()

    async def _close(self, drain_timeout_s: float) -> None:
        self._forget_timer()
        if self.is_open:
            self.is_open = False
            await self._computing.close(drain_timeout_s)

    def _watch_idleness(self) -> None:
        if self._idle_unload_s and self.is_open and not self.num_inside:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._idle_unload_s, self._unload_idle)

    def _unload_idle(self) -> None:
        if self._change is None and self.is_open and not self.num_inside:
            self._begin(self._unload(_IDLE_DRAIN_S))

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def load_on_own_thread(load: Callable[[], LoadedT], name: str) -> LoadedT | StartupError:
    """What `load` makes, or why there is none; what a failed load had in memory is given back."""
    return await run_on_own_thread(lambda: _load_or_tell(load, name), "infinity-loader")


def _load_or_tell(load: Callable[[], LoadedT], name: str) -> LoadedT | StartupError:
    try:
        return load()
    except StartupError as exc:
        failure = type(exc)(exc.reason)
    except Exception as exc:  # noqa: BLE001 - whatever a model's own code raises
        failure = StartupError(f"model {name!r} could not be loaded: {type(exc).__name__}: {str(exc)[:400]}")
    # Only here, when nothing knows the frames any more that the failure came through.
    gc.collect()
    return failure


def _collect(free_memory: Callable[[], None]) -> None:
    """Models may refer to themselves in circles."""
    gc.collect()
    free_memory()
