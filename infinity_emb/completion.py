"""From a device thread back to the event loop that waits. Knows nothing of what was computed."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from infinity_emb.errors import DeadlineExceeded
from infinity_emb.fairness import Flow
from infinity_emb.pending import PendingRequest
from infinity_emb.progress import ProgressBar

logger = logging.getLogger("infinity_emb")

ResultT = TypeVar("ResultT")


def open_request(num_items: int, bar: ProgressBar, flow: Flow) -> tuple[PendingRequest, asyncio.Future[None]]:
    """An empty answer, and a future of this loop that completes with it."""
    loop = asyncio.get_running_loop()
    done, set_done = open_future()
    on_progress = (lambda n: _call_in_loop(loop, lambda: bar.update(n))) if bar.is_shown else None
    return PendingRequest(num_items, lambda _: set_done(), on_progress, flow=flow), done


def open_future() -> tuple[asyncio.Future[None], Callable[[], None]]:
    """A future of this loop, and what completes it from any thread."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def complete() -> None:
        if not future.done():
            future.set_result(None)

    return future, lambda: _call_in_loop(loop, complete)


def _call_in_loop(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Run `callback` on the loop's thread; a loop that was closed meanwhile has nobody who waits."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        logger.debug("an event loop was closed before its request was answered")


async def run_on_own_thread(function: Callable[[], ResultT], name: str) -> ResultT:
    """What takes so long that the process may have to end before it does: nothing waits for such a thread.

    A caller that is cancelled leaves it alone, and its result is dropped.
    """
    future: Future[ResultT] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as exc:  # noqa: BLE001 - it is the caller's
            future.set_exception(exc)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await asyncio.wrap_future(future)


@asynccontextmanager
async def deadline(timeout_s: float | None) -> AsyncIterator[None]:
    """Cancel what runs inside after so many seconds. Raises DeadlineExceeded then; None never does.

    As asyncio.timeout of Python 3.11, which this package does not require.
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
            raise  # somebody else has cancelled it as well
        raise DeadlineExceeded(
            f"the request was not answered within {timeout_s:g} s, and was dropped; try again later, or allow"
            " more time"
        ) from None
    finally:
        timer.cancel()


async def gather_or_cancel(work: Iterable[Coroutine[Any, Any, ResultT]]) -> list[ResultT]:
    """All results in order. When one fails, or the caller is cancelled, the others end first."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # the others' errors are nobody's
        raise
