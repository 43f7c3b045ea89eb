"""Detect work that never returns.

Time during which the whole process was suspended (a paused container, a sleeping machine) does not count.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

WorkerT = TypeVar("WorkerT")

# A thread that wakes up later than this was suspended together with the whole process.
MAX_LATE_S = 0.5
# A suspension between two checks goes unnoticed, so there are several per timeout.
_CHECKS_PER_TIMEOUT = 8


def watch_for_hangs(
    stop: threading.Event,
    timeout_s: float,
    busy_workers: Callable[[], Iterable[tuple[WorkerT, float]]],
    report: Callable[[WorkerT], None],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Report each worker that has been busy with the same work for over `timeout_s`, until `stop` is set.

    busy_workers: returns each busy worker with the time of `clock` at which its work began, and leaves out
        those that were reported.
    """
    resumed_s = -math.inf
    pause_s = longest_pause_s = timeout_s / _CHECKS_PER_TIMEOUT
    wakes_s = clock() + pause_s
    while not stop.wait(pause_s):
        now_s = clock()
        if now_s - wakes_s > MAX_LATE_S:
            resumed_s = now_s
        pause_s = longest_pause_s
        for worker, since_s in busy_workers():
            left_s = max(since_s, resumed_s) + timeout_s - now_s
            if left_s <= 0:
                report(worker)
            else:
                pause_s = min(pause_s, left_s)
        wakes_s = clock() + pause_s
