"""Cancel the work of clients that disconnect.

A short request costs one timer; only a longer one gets a task that waits for the client to disconnect.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request

WATCH_AFTER_S = 0.05


@contextmanager
def cancel_on_disconnect(request: Request) -> Iterator[None]:
    """Cancel the block and raise ClientDisconnect if the client disconnects before it ends.

    The body of the request must have been read.
    """
    watch = _Watch(request)
    timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, watch.start)
    try:
        yield
    except asyncio.CancelledError:
        if not watch.is_disconnected:
            raise
        watch.forget_cancellation()
        raise ClientDisconnect from None
    finally:
        timer.cancel()
        watch.stop()


class _Watch:
    """Wait for a client to disconnect, then cancel the task that created the watch."""

    def __init__(self, request: Request) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._worker = task
        self._request = request
        self._task: asyncio.Task[None] | None = None
        self.is_disconnected = False

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
            self.is_disconnected = True
            self._worker.cancel()
