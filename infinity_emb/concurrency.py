"""Run work on threads, event loops and in child processes, with deadlines and cancellation."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from infinity_emb.errors import DeadlineExceeded

logger = logging.getLogger("infinity_emb")

ResultT = TypeVar("ResultT")

# Of threads and child processes that compute, beside the event loop.
_NICENESS = 5


def create_shared_future() -> tuple[asyncio.Future[None], Callable[[], None]]:
    """Return a future of the running loop and a callback that completes it from any thread."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def complete() -> None:
        if not future.done():
            future.set_result(None)

    return future, lambda: call_in_loop(loop, complete)


def call_in_loop(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Run `callback` on the loop's thread; do nothing when the loop is closed."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        logger.debug("the event loop was closed before its request completed")


class LoopCalls:
    """Call functions on one event loop from any thread; functions that arrive together wake it once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._functions: deque[Callable[[], None]] = deque()
        self._is_due = False

    def add(self, function: Callable[[], None]) -> None:
        """Schedule a call of the function, which must not raise."""
        self._functions.append(function)
        if not self._is_due:
            self._is_due = True
            call_in_loop(self.loop, self._call_all)

    def _call_all(self) -> None:
        self._is_due = False  # first, so that a function added meanwhile schedules another call
        while self._functions:
            self._functions.popleft()()


class OncePerTurn:
    """Call a function once per turn of the running event loop, however often it is requested."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._loop: asyncio.AbstractEventLoop | None = None  # which will call the function

    def request(self) -> None:
        """Call the function after the callbacks that are ready now."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # None, or a loop that was closed before the call
            self._loop = loop
            loop.call_soon(self._call)

    def _call(self) -> None:
        self._loop = None
        self._function()


class ForkDetector:
    """Detect a fork of the process that started threads: the child has none of them."""

    def __init__(self) -> None:
        self._process_id = os.getpid()

    @property
    def is_forked(self) -> bool:
        """Return true in a fork of the process that created this object."""
        return self._process_id != os.getpid()


class ExclusiveTask(Generic[ResultT]):
    """Run one coroutine at a time, as a task that continues when its waiters are cancelled."""

    def __init__(self) -> None:
        self.task: asyncio.Task[ResultT] | None = None  # None unless one is running

    def begin(self, coroutine: Coroutine[Any, Any, ResultT]) -> asyncio.Task[ResultT]:
        """Start a coroutine; none may be running."""
        assert self.task is None, "another coroutine is running"
        self.task = asyncio.ensure_future(coroutine)
        self.task.add_done_callback(self._forget)  # runs before the callbacks of waiters
        return self.task

    async def wait(self) -> None:
        """Wait until none is running."""
        while self.task is not None:
            await asyncio.wait([self.task])

    async def stop(self, timeout_s: float) -> None:
        """Wait for the running one up to the timeout, then cancel it."""
        if (task := self.task) is not None:
            await asyncio.wait([task], timeout=timeout_s)
            task.cancel()
            await asyncio.wait([task])

    def _forget(self, _: asyncio.Task[ResultT]) -> None:
        self.task = None


async def run_on_daemon_thread(function: Callable[[], ResultT], name: str) -> ResultT:
    """Run a function that may outlast the process: interpreter exit does not wait for its thread.

    When the caller is cancelled the thread runs on and its result is dropped.
    """
    future: Future[ResultT] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as exc:  # noqa: BLE001 - re-raised in the caller
            future.set_exception(exc)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await asyncio.wrap_future(future)


def lower_thread_priority() -> None:
    """Give the calling thread, and threads that it starts, a lower priority than the rest of its process.

    Does nothing where priorities belong to whole processes: elsewhere than on Linux.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # of sandboxes that forbid it
            niceness = os.getpriority(os.PRIO_PROCESS, os.getpid()) + _NICENESS
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


def start_isolated_python(program: str) -> subprocess.Popen[bytes]:
    """Start a child process in a new session that runs a program with this package; its pipes are binary.

    It imports nothing from the working directory or the environment, which may contain a file `json.py`.
    """
    package_folder = str(Path(__file__).parents[1])
    path = [package_folder, *(each for each in sys.path if each not in ("", os.getcwd()))]
    return subprocess.Popen(
        [sys.executable, "-I", "-c", f"import sys; sys.path[:] = {path!r}; {program}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the server, which ends its children
    )


def prepare_isolated_child() -> int:
    """Prepare this process, a child of `start_isolated_python`; return the descriptor of its answers.

    It gets a lower priority than the server, which serves others meanwhile, and dumps no core.
    """
    answers = os.dup(1)
    os.dup2(2, 1)  # libraries may write to standard output
    if sys.platform != "win32":
        import resource

        os.nice(_NICENESS)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return answers


class KillTimer(threading.Timer):
    """Call `kill` on another thread after a timeout, unless cancelled before.

    has_fired: whether `kill` was called.
    """

    def __init__(self, timeout_s: float, kill: Callable[[], object]) -> None:
        super().__init__(timeout_s, self._fire)
        self.daemon = True
        self.has_fired = False
        self._kill = kill

    def _fire(self) -> None:
        self.has_fired = True
        self._kill()


class _TimedOut(BaseException):
    """Raised inside of interrupted work; no Exception, since libraries catch those."""


def call_within(timeout_s: float, function: Callable[[], ResultT]) -> ResultT:
    """Return the function's result. Raises TimeoutError if it takes longer; 0 sets no limit.

    It is interrupted between two steps of Python code; a call that never returns from native code is not.
    """
    if not timeout_s:
        return function()
    thread_id = ctypes.c_ulong(threading.get_ident())
    lock = threading.Lock()
    is_over = has_fired = False

    def interrupt() -> None:
        nonlocal has_fired
        with lock:
            if not is_over:
                has_fired = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread_id, ctypes.py_object(_TimedOut))

    timer = threading.Timer(timeout_s, interrupt)
    timer.daemon = True
    try:
        try:
            timer.start()
            return function()
        finally:
            with lock:
                is_over = True
            if has_fired:  # and perhaps not raised yet
                _raise_interruption_here(thread_id)
            timer.cancel()
    except _TimedOut:
        raise TimeoutError(f"took longer than {timeout_s:g} s") from None


def _raise_interruption_here(thread_id: ctypes.c_ulong) -> None:
    """Replace an interruption that may not have been raised yet by one that is raised in this function.

    Taking it back leaves a flag set in CPython 3.11: every call is slower from then on, and under a trace
    function, as for coverage, none returns.
    """
    with suppress(_TimedOut):
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread_id, ctypes.py_object(_TimedOut))
        while True:
            pass


@asynccontextmanager
async def deadline(timeout_s: float | None) -> AsyncIterator[None]:
    """Cancel the block after `timeout_s` seconds and raise DeadlineExceeded; None sets no limit.

    A substitute for asyncio.timeout, which needs Python 3.11.
    """
    task = asyncio.current_task()
    if timeout_s is None or task is None:
        yield
        return
    is_over = False

    def end() -> None:
        nonlocal is_over
        is_over = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(timeout_s, end)
    try:
        yield
    except asyncio.CancelledError:
        if not is_over:
            raise
        if sys.version_info >= (3, 11) and task.uncancel():
            raise  # cancelled from outside as well
        raise DeadlineExceeded(
            f"the request timed out after {timeout_s:g} s; try again later or set a longer timeout"
        ) from None
    finally:
        timer.cancel()


async def gather_or_cancel(work: Iterable[Coroutine[Any, Any, ResultT]]) -> list[ResultT]:
    """Return all results in order. When one fails or the caller is cancelled, cancel the others first."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # only the first error is raised
        raise
    finally:
        tasks.clear()  # breaks the reference cycle of an error and this frame
