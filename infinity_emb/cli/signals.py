"""Handle signals, and exit at once. Main thread only, as in Python's `signal`."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

# A terminal that is closed sends SIGHUP; container images may ask for SIGQUIT in place of SIGTERM.
STOP_SIGNALS = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
)
# They end a process that does not handle them; the server handles the first one once it listens.
_USER_SIGNALS = tuple(signal.Signals[name] for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))


@contextlib.contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Call `handler` for each stop signal inside the block, and restore the previous handlers.

    A SIGHUP that is ignored stays so, for `nohup`.
    """
    is_detached = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    handled = [number for number in STOP_SIGNALS if not (is_detached and number.name == "SIGHUP")]
    previous = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, previous_handler in previous.items():
            signal.signal(number, previous_handler)


def ignore_user_signals() -> None:
    """Ignore SIGUSR1 and SIGUSR2 from now on."""
    for number in _USER_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def exit_now(number: int, reason: str) -> NoReturn:
    """Exit with one line and the exit code that shells give a signal, 128 + its number.

    An exception would wait for download pools, or be swallowed by model libraries. A log line could deadlock:
    the signal may have interrupted another one.
    """
    os.write(2, f"{reason}\n".encode())
    os._exit(128 + number)
