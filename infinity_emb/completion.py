"""From a device thread back to the event loop that waits. Knows nothing of what was computed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from infinity_emb.progress import ProgressBar
from infinity_emb.worker import PendingRequest

logger = logging.getLogger("infinity_emb")

ResultT = TypeVar("ResultT")


def open_request(num_items: int, bar: ProgressBar) -> tuple[PendingRequest, asyncio.Future[None]]:
    """An empty answer, and a future of this loop that completes with it."""
    loop = asyncio.get_running_loop()
    done, set_done = open_future()
    on_progress = (lambda n: _call_in_loop(loop, lambda: bar.update(n))) if bar.is_shown else None
    return PendingRequest(num_items, lambda _: set_done(), on_progress), done


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
