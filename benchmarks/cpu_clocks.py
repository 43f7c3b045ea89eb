"""Read how much CPU time the threads of a process have used, and how long they waited for a core."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple


class CpuTime(NamedTuple):
    """Seconds since the process started, or of a span.

    loop_s: of the main thread, which runs the event loop; other_s: of all other threads, which compute.
    loop_wait_s, other_wait_s: the time in which they could have run and had no core.
    generator_s: of the process that asks, which generates the load.
    """

    at_s: float
    loop_s: float
    other_s: float
    loop_wait_s: float
    other_wait_s: float
    generator_s: float

    def since(self, earlier: CpuTime) -> CpuTime:
        """Return the difference."""
        return CpuTime(*(now - before for now, before in zip(self, earlier, strict=True)))


def read_cpu_time(pid: int) -> CpuTime:
    """Return the CPU time of a process and of this one."""
    loop_s = other_s = loop_wait_s = other_wait_s = 0.0
    for path in Path(f"/proc/{pid}/task").iterdir():
        try:
            run_ns, wait_ns, _ = map(int, (path / "schedstat").read_text().split())
        except OSError:  # the thread has ended
            continue
        if path.name == str(pid):
            loop_s, loop_wait_s = run_ns / 1e9, wait_ns / 1e9
        else:
            other_s, other_wait_s = other_s + run_ns / 1e9, other_wait_s + wait_ns / 1e9
    return CpuTime(time.perf_counter(), loop_s, other_s, loop_wait_s, other_wait_s, time.process_time())
