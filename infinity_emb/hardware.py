"""Detect the cores and the memory that this process may use, within the limits of its container.

Reads Linux control groups; on other systems all cores count, and free memory is unknown.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import time
from pathlib import Path
from typing import NamedTuple

CGROUP_ROOT = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
STATM = Path("/proc/self/statm")
CPUINFO = Path("/proc/cpuinfo")
PROCESS_STAT = Path("/proc/self/stat")

MAX_TOKENIZER_THREADS = 8

_IMPORTED_S = time.monotonic()


def num_usable_cpus(cgroup_root: Path = CGROUP_ROOT) -> int:
    """Count the cores that this process may use, rounded down, at least 1.

    Both the affinity mask (cpusets) and the CPU quota of the control group limit it: with 16 visible cores
    and a quota of 2, sixteen threads would slow each other down.
    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html, `cpu.max`; version 1: `cpu.cfs_quota_us`.
    """
    visible = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota_v2(cgroup_root) or _quota_v1(cgroup_root)
    return max(1, visible if quota is None else min(visible, int(quota)))


def process_age_s(stat: Path = PROCESS_STAT) -> float:
    """Return the seconds since this process started; outside Linux, since this module was imported.

    Source: proc_pid_stat(5), field 22.
    """
    try:
        started_ticks = int(stat.read_text().rpartition(")")[2].split()[19])
        started_s = started_ticks / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic() - _IMPORTED_S


def num_tokenizer_threads(requested: int) -> int:
    """Return the number of tokenizer threads: as requested, or by cores when that is 0."""
    return requested or min(MAX_TOKENIZER_THREADS, num_usable_cpus())


def cpu_name(cpuinfo: Path = CPUINFO) -> str:
    """Return the processor's model name, or its architecture when the name is unknown."""
    for line in read_lines(cpuinfo):
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def free_memory_bytes(cgroup_root: Path = CGROUP_ROOT, meminfo: Path = MEMINFO) -> int | None:
    """Return the memory that this process can still allocate without swapping, or None when unknown.

    The page cache counts as free, for the machine and for the control group.
    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html, `memory.max`
    """
    free = [1024 * int(line.split()[1]) for line in read_lines(meminfo) if line.startswith("MemAvailable:")]
    for folder in _own_cgroups(cgroup_root):
        limit, used = (_read_words(folder / name) for name in ("memory.max", "memory.current"))
        if limit and used and limit[0] != "max":
            free.append(int(limit[0]) - int(used[0]) + _cached_bytes(folder))
    return max(0, min(free)) if free else None


class MemoryUse(NamedTuple):
    """Bytes used by this process, and the limit; 0 if unknown."""

    used_bytes: int
    limit_bytes: int


def measure_process_memory(
    cgroup_root: Path = CGROUP_ROOT, meminfo: Path = MEMINFO, statm: Path = STATM
) -> MemoryUse:
    """Return the resident memory of this process, and the memory of the machine or the control group.

    Source: https://docs.kernel.org/filesystems/proc.html, `statm`: total and resident size in pages.
    """
    words = _read_words(statm)
    used_bytes = int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 else 0
    limits = [1024 * int(line.split()[1]) for line in read_lines(meminfo) if line.startswith("MemTotal:")]
    for folder in _own_cgroups(cgroup_root):
        limit = _read_words(folder / "memory.max")
        if limit and limit[0] != "max":
            limits.append(int(limit[0]))
    return MemoryUse(used_bytes, min(limits, default=0))


def return_freed_memory() -> None:
    """Make glibc return freed memory to the system; other C libraries do so on their own."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _cached_bytes(group: Path) -> int:
    lines = map(str.split, read_lines(group / "memory.stat"))
    return sum(int(words[1]) for words in lines if words[0] in ("active_file", "inactive_file"))


def _quota_v2(root: Path) -> float | None:
    """Read `cpu.max`: "quota period" in microseconds, or "max period". The lowest of all parents counts."""
    quotas = []
    for folder in _own_cgroups(root):
        words = _read_words(folder / "cpu.max")
        if len(words) == 2 and words[0] != "max":
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _quota_v1(root: Path) -> float | None:
    quota = _read_words(root / "cpu" / "cpu.cfs_quota_us")
    period = _read_words(root / "cpu" / "cpu.cfs_period_us")
    if not quota or not period or int(quota[0]) <= 0:
        return None
    return int(quota[0]) / int(period[0])


def _own_cgroups(root: Path) -> list[Path]:
    """List the directories of this process's control group and of its visible parents."""
    own = root
    for line in read_lines(Path("/proc/self/cgroup")):
        if line.startswith("0::/"):
            own = root / line.removeprefix("0::/")
    return [folder for folder in (own, *own.parents) if folder == root or root in folder.parents]


def _read_words(path: Path) -> list[str]:
    return " ".join(read_lines(path)).split()


def read_lines(path: Path) -> list[str]:
    """Return the lines of a kernel file, or [] if it does not exist."""
    try:
        return path.read_text().splitlines()
    except OSError:  # the controller is not available
        return []
