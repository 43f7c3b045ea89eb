"""Use engines from synchronous code: an event loop on a background thread runs them.

Every task returns a `concurrent.futures.Future` immediately. Cancelling it, or Ctrl-C while waiting for it,
cancels the work.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, Concatenate, ParamSpec, TypeVar

from infinity_emb.concurrency import ForkDetector
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine.array import AsyncEngineArray
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.errors import EngineNotReady

P = ParamSpec("P")
T = TypeVar("T")

# Time for requests to pass on their errors after the engines have stopped.
GRACE_S = 1.0


class _TaskFuture(Future[T]):
    """The result of a coroutine on another thread, which is cancelled if waiting for it is interrupted."""

    def __init__(self, work: Future[T]) -> None:
        super().__init__()
        self.has_callbacks = False
        self._work = work
        work.add_done_callback(self._copy)

    def cancel(self) -> bool:
        is_cancelled = super().cancel()
        if is_cancelled:
            self._work.cancel()
        return is_cancelled

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        self.has_callbacks = True
        super().add_done_callback(fn)

    def result(self, timeout: float | None = None) -> T:
        with self._cancelled_by_interrupt():
            return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        with self._cancelled_by_interrupt():
            return super().exception(timeout)

    @contextlib.contextmanager
    def _cancelled_by_interrupt(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            self.cancel()
            raise

    def _copy(self, work: Future[T]) -> None:
        if work.cancelled() or self.cancelled():
            super().cancel()
            self.set_running_or_notify_cancel()
            return
        with contextlib.suppress(InvalidStateError):  # cancelled just now
            if (error := work.exception()) is not None:
                self.set_exception(error)
            else:
                self.set_result(work.result())


class _LoopThread:
    """Run an event loop on a daemon thread while the engines of one array run."""

    def __init__(self, array: AsyncEngineArray) -> None:
        self._array = array
        self.process = ForkDetector()
        self._pending: set[_TaskFuture[Any]] = set()
        self._is_stopping = asyncio.Event()
        ready: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(
            target=asyncio.run, args=(self._run(ready),), name="infinity-sync", daemon=True
        )
        self._thread.start()
        self._loop = ready.result()
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.stop)
            self.submit(array.astart()).result()
            on_failure.pop_all()
        # After the start, which registers the end of the worker threads: this has to come before that.
        atexit.register(self._stop_at_exit)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        work = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        future = _TaskFuture(work)
        self._pending.add(future)
        work.add_done_callback(lambda _: self._pending.discard(future))
        return future

    def cancel_all(self, *, keep_callbacks: bool = False) -> None:
        """Cancel pending futures.

        keep_callbacks: keep those whose results are passed to a callback.
        """
        for future in list(self._pending):
            if not (keep_callbacks and future.has_callbacks):
                future.cancel()

    def begin_stop(self) -> None:
        """Tell the engines and the thread to end; does not wait, as the garbage collector may call it."""
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._is_stopping.set)

    def stop(self) -> None:
        """Finish accepted requests and end the thread. May be called again."""
        self.begin_stop()
        self._thread.join()

    def _stop_at_exit(self) -> None:
        """Stop, and cancel futures whose results nobody can read any more."""
        if not self.process.is_forked:
            self.cancel_all(keep_callbacks=True)
            self.stop()

    async def _run(self, ready: Future[asyncio.AbstractEventLoop]) -> None:
        ready.set_result(asyncio.get_running_loop())
        await self._is_stopping.wait()
        try:
            await self._array.astop()
            if unfinished := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(unfinished, timeout=GRACE_S)
        finally:
            atexit.unregister(self._stop_at_exit)


def _as_future(
    task: Callable[Concatenate[AsyncEngineArray, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[SyncEngineArray, P], Future[T]]:
    """Make a task that returns a future of one of an `AsyncEngineArray`; both have the same arguments."""

    @functools.wraps(task)
    def submit(self: SyncEngineArray, /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        model: Any = kwargs.get("model")
        if model is not None:
            self[model]  # raises UnknownModel here instead of in the future
        return self._submit(task(self._array, *args, **kwargs))

    signature = inspect.signature(task)
    returned = f"Future[{signature.return_annotation}]"
    vars(submit)["__signature__"] = signature.replace(return_annotation=returned)
    submit.__annotations__ = {**submit.__annotations__, "return": returned}
    return submit


class SyncEngineArray:
    """An engine array for synchronous code.

        with SyncEngineArray([EngineArgs()]) as array:
            vectors, num_tokens = array.embed(model=0, sentences=["Hello"]).result()

    The constructor loads the models, which blocks. An array stops itself when it is garbage-collected or when
    the interpreter exits. Only the exit waits for the stop, since the collector may run on a thread that has
    to end. Of unfinished tasks, only those with a callback are still computed.
    """

    embed = _as_future(AsyncEngineArray.embed)
    encode = _as_future(AsyncEngineArray.encode)
    encode_passages = _as_future(AsyncEngineArray.encode_passages)
    rerank = _as_future(AsyncEngineArray.rerank)
    classify = _as_future(AsyncEngineArray.classify)
    image_embed = _as_future(AsyncEngineArray.image_embed)
    audio_embed = _as_future(AsyncEngineArray.audio_embed)

    def __init__(self, engine_args_array: Sequence[EngineArgs | str] | EngineArgs) -> None:
        self._array = AsyncEngineArray.from_args(engine_args_array)
        self._thread = _LoopThread(self._array)
        self._lock = threading.Lock()  # nothing may be submitted after the loop has ended
        self._finalizer = weakref.finalize(self, self._thread.begin_stop)
        self._finalizer.atexit = False

    @classmethod
    def from_args(cls, engine_args_array: Sequence[EngineArgs | str] | EngineArgs) -> SyncEngineArray:
        """Load and start the models; blocks."""
        return cls(engine_args_array)

    def __enter__(self) -> SyncEngineArray:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not issubclass(kind, Exception):  # Ctrl-C or sys.exit
            self._thread.cancel_all()
        self.stop()

    def __iter__(self) -> Iterator[AsyncEmbeddingEngine]:
        return iter(self._array)

    def __getitem__(self, index_or_name: str | int) -> AsyncEmbeddingEngine:
        return self._array[index_or_name]

    @property
    def is_running(self) -> bool:
        """Return true when every engine is running."""
        return self._finalizer.alive and not self._thread.process.is_forked and self._array.is_running()

    def stop(self) -> None:
        """Finish accepted requests, then end the threads; blocks. Does nothing in a forked process."""
        if self._thread.process.is_forked:
            return
        with self._lock:
            self._finalizer()
        self._thread.stop()

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        if self._thread.process.is_forked:
            coroutine.close()
            raise EngineNotReady(
                "this SyncEngineArray was created before this process was forked, and its threads do not"
                " exist here; create one in each process, or start processes with 'spawn'"
            )
        with self._lock:
            if self._finalizer.alive:
                return self._thread.submit(coroutine)
        coroutine.close()
        raise EngineNotReady("this SyncEngineArray is stopped; create a new one")
