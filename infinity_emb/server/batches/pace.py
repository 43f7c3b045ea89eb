"""Run batches in the time that other requests leave free.

A line that is being computed cannot be interrupted, so even in the bulk lane it delays a request that arrives
meanwhile. While there are other requests, lines therefore run one at a time, with pauses that keep the share
of delayed requests small, but fast enough to finish within the batch's window.
"""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Receive, Scope, Send

# The server counts as busy for this long after the last other request.
QUIET_S = 1.0
MIN_PAUSE_S = 0.1
MAX_PAUSE_S = 2.0
# Lines take at most this fraction of the time.
DUTY = 1 / 20


class Pace:
    """Track the last other request, and when the next line may start."""

    def __init__(self) -> None:
        self._last_request_s = -QUIET_S
        self._next_line_s = 0.0

    def note_request(self) -> None:
        """Note a request that does not belong to a batch."""
        self._last_request_s = time.monotonic()

    @property
    def is_busy(self) -> bool:
        """Return true while other requests arrive."""
        return time.monotonic() - self._last_request_s < QUIET_S

    def note_line(self, duration_s: float, num_left: int, left_s: float) -> None:
        """Set the pause after a line; the remaining lines must take at most half of the remaining time."""
        pause_s = min(MAX_PAUSE_S, max(MIN_PAUSE_S, duration_s / DUTY))
        needed_s = left_s / 2 / max(1, num_left)
        self._next_line_s = time.monotonic() + max(0.0, min(pause_s, needed_s))

    async def wait(self) -> None:
        """Wait until the pause or the other requests have ended."""
        while self.is_busy:
            now_s = time.monotonic()
            left_s = min(self._last_request_s + QUIET_S, self._next_line_s) - now_s
            if left_s <= 0:
                return
            await asyncio.sleep(left_s)


class PaceMiddleware:
    """Note each request that may need the device."""

    def __init__(self, app: ASGIApp, pace: Pace) -> None:
        self._app = app
        self._pace = pace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request; the server counts as busy until its end."""
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        is_counted = is_post and not scope["path"].endswith(("/files", "/batches", "/cancel"))
        if is_counted:
            self._pace.note_request()
        await self._app(scope, receive, send)
        if is_counted:
            self._pace.note_request()
