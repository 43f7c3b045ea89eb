"""Cancel the work of clients that disconnect.

A short request costs one timer; only a longer one gets a task that waits for the client to disconnect.
"""

from __future__ import annotations

import asyncio
import sys

from starlette.requests import ClientDisconnect, Request

WATCH_AFTER_S = 0.05


class DisconnectWatch:
    """Cancel the block and raise ClientDisconnect if the client disconnects before it ends.

    The body of the request must have been read.
    """

    __slots__ = ("_is_disconnected", "_request", "_task", "_timer", "_worker")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._task: asyncio.Task[None] | None = None
        self._is_disconnected = False

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        worker = asyncio.current_task(loop)
        assert worker is not None
        self._worker = worker
        self._timer = loop.call_later(WATCH_AFTER_S, self._start)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            self._task = None  # breaks the reference cycle of its error and this object
        if self._is_disconnected and kind is not None and issubclass(kind, asyncio.CancelledError):
            if sys.version_info >= (3, 11):
                self._worker.uncancel()
            raise ClientDisconnect from None

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        message = await self._request.receive()
        if message["type"] == "http.disconnect":
            self._is_disconnected = True
            self._worker.cancel()
