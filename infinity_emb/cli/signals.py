"""Ctrl-C and SIGTERM, for as long as somebody handles them, and how to leave at once.

Knows nothing of what is interrupted. Main thread only, as Python's signal handling is.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Call `handler` for each stop signal inside the block; afterwards as before."""
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def quit_at_once(number: int, reason: str) -> NoReturn:
    """End the process with one line and the exit code that shells give a signal, 128 + its number.

    No exception: a download pool would wait for it and model libraries would swallow it. No log line: the
    signal may have come in the middle of one, where the stream refuses to be entered again.
    """
    os.write(2, f"{reason}\n".encode())
    os._exit(128 + number)
