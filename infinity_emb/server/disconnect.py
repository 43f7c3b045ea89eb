"""Cancels the work for a client that has hung up. Knows nothing of what the work is.

A request that is answered quickly pays for one timer and no task; only one that takes longer gets a task
that waits for the client to leave.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

T = TypeVar("T")

WATCH_AFTER_S = 0.05


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`. Raises ClientDisconnect, and cancels `work`, when the client leaves before its end.

    The request's body must have been read.
    """
    watch = _Watch(request)
    timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, watch.start)
    try:
        return await work
    except asyncio.CancelledError:
        if not watch.has_hung_up:
            raise
        watch.forget_cancellation()
        raise ClientDisconnect from None
    finally:
        timer.cancel()
        watch.stop()


class _Watch:
    """Waits for one client to leave and cancels the task that made the watch."""

    def __init__(self, request: Request) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._worker = task
        self._request = request
        self._task: asyncio.Task[None] | None = None
        self.has_hung_up = False

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._wait())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def forget_cancellation(self) -> None:
        if sys.version_info >= (3, 11):
            self._worker.uncancel()

    async def _wait(self) -> None:
        message = await self._request.receive()
        if message["type"] == "http.disconnect":
            self.has_hung_up = True
            self._worker.cancel()
