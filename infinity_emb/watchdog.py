"""Notices work that never returns. Knows nothing of what the work is.

Time in which the whole process stood still (a stopped container, a machine that slept) is nobody's fault and
does not count.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

Worker = TypeVar("Worker")

# A thread that wakes up this much later than it asked for was not alone in standing still.
MAX_LATE_S = 0.5
# Standing still between two looks is not noticed.
_LOOKS_PER_LIMIT = 8


def watch(
    is_over: threading.Event,
    limit_s: float,
    at_work: Callable[[], Iterable[tuple[Worker, float]]],
    report: Callable[[Worker], None],
) -> None:
    """Return when `is_over` is set; until then report whoever is at the same work for over `limit_s`.

    at_work: who works, and since when by `time.monotonic`; not again who was reported.
    """
    resumed_s = -math.inf
    pause_s = longest_s = limit_s / _LOOKS_PER_LIMIT
    wakes_s = time.monotonic() + pause_s
    while not is_over.wait(pause_s):
        now_s = time.monotonic()
        if now_s - wakes_s > MAX_LATE_S:
            resumed_s = now_s
        pause_s = longest_s
        for worker, since_s in at_work():
            left_s = max(since_s, resumed_s) + limit_s - now_s
            if left_s <= 0:
                report(worker)
            else:
                pause_s = min(pause_s, left_s)
        wakes_s = time.monotonic() + pause_s
