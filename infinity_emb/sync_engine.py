"""The engine array for callers without an event loop: an own loop on an own thread.

Every task returns a `concurrent.futures.Future` at once. Knows nothing of the tasks.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from infinity_emb.config import EngineArgs
from infinity_emb.engine import AsyncEmbeddingEngine
from infinity_emb.engine_array import AsyncEngineArray
from infinity_emb.errors import EngineNotReady

T = TypeVar("T")


# What requests get, after the engines have stopped, to hand their error to those who wait for it.
GRACE_S = 1.0


class _LoopThread:
    """An event loop on a daemon thread, for as long as the engines of one array run."""

    def __init__(self, array: AsyncEngineArray) -> None:
        self._array = array
        self._is_stopping = asyncio.Event()
        ready: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(
            target=asyncio.run, args=(self._run(ready),), name="infinity-sync", daemon=True
        )
        self._thread.start()
        self._loop = ready.result()
        atexit.register(self.stop)
        self.submit(array.astart()).result()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def begin_stop(self) -> None:
        """Let the engines and then the thread end; waits for nothing, so that a collector may call it."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
            self._loop.call_soon_threadsafe(self._is_stopping.set)

    def stop(self) -> None:
        """Finish what was accepted, end the thread. Harmless when called twice."""
        self.begin_stop()
        self._thread.join()

    async def _run(self, ready: Future[asyncio.AbstractEventLoop]) -> None:
        ready.set_result(asyncio.get_running_loop())
        await self._is_stopping.wait()
        try:
            await self._array.astop()
            if unanswered := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(unanswered, timeout=GRACE_S)
        finally:
            atexit.unregister(self.stop)


def _by_model(task: str) -> Callable[..., Future[Any]]:
    def method(self: SyncEngineArray, *, model: str | int, **kwargs: Any) -> Future[Any]:
        return self._submit(getattr(self._array[model], task)(**kwargs))

    method.__name__ = task
    method.__doc__ = f"A future of `{task}` of the engine that `model` names. Raises UnknownModel."
    return method


class SyncEngineArray:
    """Engines by name, for synchronous code.

        with SyncEngineArray([EngineArgs()]) as array:
            vectors, num_tokens = array.embed(model=0, sentences=["Hello"]).result()

    Loading blocks the constructor. An array that is collected or left at exit stops itself: at exit the
    interpreter waits for it, the collector does not, as it may run on one of the threads that are to end.
    """

    def __init__(self, engine_args_array: Sequence[EngineArgs]) -> None:
        self._array = AsyncEngineArray.from_args(engine_args_array)
        self._thread = _LoopThread(self._array)
        self._lock = threading.Lock()  # nothing is handed to the loop behind its end
        self._finalizer = weakref.finalize(self, self._thread.begin_stop)
        self._finalizer.atexit = False

    @classmethod
    def from_args(cls, engine_args_array: Sequence[EngineArgs]) -> SyncEngineArray:
        """Load and start; blocks."""
        return cls(engine_args_array)

    def __enter__(self) -> SyncEngineArray:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __iter__(self) -> Iterator[AsyncEmbeddingEngine]:
        return iter(self._array)

    def __getitem__(self, index_or_name: str | int) -> AsyncEmbeddingEngine:
        return self._array[index_or_name]

    @property
    def is_running(self) -> bool:
        """Whether every engine can answer."""
        return self._finalizer.alive and self._array.is_running()

    def stop(self) -> None:
        """Finish what was accepted, then end the threads; blocks."""
        with self._lock:
            self._finalizer()
        self._thread.stop()

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        with self._lock:
            if self._finalizer.alive:
                return self._thread.submit(coroutine)
        coroutine.close()
        raise EngineNotReady("this SyncEngineArray is stopped; make another one")

    embed = _by_model("embed")
    encode = _by_model("encode")
    encode_passages = _by_model("encode_passages")
    rerank = _by_model("rerank")
    classify = _by_model("classify")
    image_embed = _by_model("image_embed")
    audio_embed = _by_model("audio_embed")
