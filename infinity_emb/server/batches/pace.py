"""Let batches use the time that other requests leave.

A line that is being computed cannot be interrupted, so even in the lane for bulk work it delays a request
that arrives meanwhile. While there are other requests, lines therefore run one at a time, with pauses that
keep the share of delayed requests small, but never slower than the batch's window allows.
"""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Receive, Scope, Send

# Other requests are expected to go on for so long after the last one.
QUIET_S = 1.0
MIN_PAUSE_S = 0.1
MAX_PAUSE_S = 2.0
# A line takes at most this part of the time.
DUTY = 1 / 20


class Pace:
    """Tell when other requests have last come, and when the next line may start."""

    def __init__(self) -> None:
        self._last_request_s = -QUIET_S
        self._next_line_s = 0.0

    def note_request(self) -> None:
        """Note a request that is not of a batch."""
        self._last_request_s = time.monotonic()

    @property
    def is_busy(self) -> bool:
        """Return true while other requests come."""
        return time.monotonic() - self._last_request_s < QUIET_S

    def note_line(self, duration_s: float, num_left: int, left_s: float) -> None:
        """Set the pause behind a line; the lines that are left must take at most half of the time left."""
        pause_s = min(MAX_PAUSE_S, max(MIN_PAUSE_S, duration_s / DUTY))
        needed_s = left_s / 2 / max(1, num_left)
        self._next_line_s = time.monotonic() + max(0.0, min(pause_s, needed_s))

    async def wait(self) -> None:
        """Wait until other requests have ended, or the pause."""
        while self.is_busy:
            now_s = time.monotonic()
            left_s = min(self._last_request_s + QUIET_S, self._next_line_s) - now_s
            if left_s <= 0:
                return
            await asyncio.sleep(left_s)


def _is_own(path: str) -> bool:
    return path.endswith(("/files", "/batches", "/cancel"))


class PaceMiddleware:
    """Note each request that may compute something."""

    def __init__(self, app: ASGIApp, pace: Pace) -> None:
        self._app = app
        self._pace = pace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request; one that takes long counts until its end."""
        is_counted = scope["type"] == "http" and scope["method"] == "POST" and not _is_own(scope["path"])
        if is_counted:
            self._pace.note_request()
        await self._app(scope, receive, send)
        if is_counted:
            self._pace.note_request()
