"""The engine array for callers without an event loop: an own loop on an own thread.

Every task returns a `concurrent.futures.Future` at once. Knows nothing of the tasks.
"""

from __future__ import annotations

import asyncio
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


class _LoopThread:
    """An event loop on a daemon thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="infinity-sync", daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def close(self, array: AsyncEngineArray) -> None:
        """Stop the engines, then the loop. Harmless when called twice."""
        if self.loop.is_closed():
            return
        self.submit(array.astop()).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


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

    Loading blocks the constructor. An array that is collected or left at exit stops itself.
    """

    def __init__(self, engine_args_array: Sequence[EngineArgs]) -> None:
        self._array = AsyncEngineArray.from_args(engine_args_array)
        self._thread = _LoopThread()
        self._thread.submit(self._array.astart()).result()
        self._finalizer = weakref.finalize(self, self._thread.close, self._array)

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
        self._finalizer()

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        if not self._finalizer.alive:
            coroutine.close()
            raise EngineNotReady("this SyncEngineArray is stopped; make another one")
        return self._thread.submit(coroutine)

    embed = _by_model("embed")
    rerank = _by_model("rerank")
    classify = _by_model("classify")
    image_embed = _by_model("image_embed")
    audio_embed = _by_model("audio_embed")
