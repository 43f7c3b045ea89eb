"""End the worker threads before the interpreter ends.

A daemon thread that returns from native code while the interpreter is torn down aborts the whole process:
`terminate called without an active exception`.
"""

from __future__ import annotations

import atexit
import functools
import os
import time
import weakref
from typing import Protocol

# Time for the batches that devices are computing.
EXIT_TIMEOUT_S = 5.0


class Stoppable(Protocol):
    """Anything with threads that must end."""

    def end_threads(self, timeout_s: float) -> None:
        """Drop what waits, and wait for the threads."""


_running: weakref.WeakSet[Stoppable] = weakref.WeakSet()


def end_at_exit(pool: Stoppable) -> None:
    """End the threads of a pool when the interpreter exits, unless the pool is gone by then."""
    _register()
    _running.add(pool)


@functools.cache
def _register() -> None:
    atexit.register(_end_all)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_running.clear)  # a child has no copy of the threads


def _end_all() -> None:
    deadline_s = time.monotonic() + EXIT_TIMEOUT_S
    for pool in list(_running):
        pool.end_threads(max(0.0, deadline_s - time.monotonic()))
