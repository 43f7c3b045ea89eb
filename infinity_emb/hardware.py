"""What this machine lets us use: cores and memory within the container's limits.

Knows nothing of torch. Linux's control groups are read as files; elsewhere all cores count, and memory is not
known.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
CPUINFO = Path("/proc/cpuinfo")

MAX_TOKENIZER_THREADS = 8


def num_usable_cpus(cgroup_root: Path = CGROUP_ROOT) -> int:
    """Cores this process may really use, rounded down, at least 1.

    The affinity mask (cpusets) bounds it, and so does the CPU quota of the control group: with 16 cores
    visible and a quota of 2, sixteen threads would stand in each other's way.
    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html, `cpu.max`; version 1: `cpu.cfs_quota_us`.
    """
    visible = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota_v2(cgroup_root) or _quota_v1(cgroup_root)
    return max(1, visible if quota is None else min(visible, int(quota)))


def num_tokenizer_threads(asked: int) -> int:
    """Threads that prepare inputs: as asked, or by cores where that is 0."""
    return asked or min(MAX_TOKENIZER_THREADS, num_usable_cpus())


def cpu_name(cpuinfo: Path = CPUINFO) -> str:
    """What the maker calls the processor; its architecture where the system does not say."""
    for line in _read_lines(cpuinfo):
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def free_memory_bytes(cgroup_root: Path = CGROUP_ROOT, meminfo: Path = MEMINFO) -> int | None:
    """Memory that this process could still have without swapping; None where the system does not say.

    What files have in the page cache counts as free, of the machine and of the control group.
    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html, `memory.max`
    """
    free = [1024 * int(line.split()[1]) for line in _read_lines(meminfo) if line.startswith("MemAvailable:")]
    for folder in _own_cgroups(cgroup_root):
        limit, used = (_read_words(folder / name) for name in ("memory.max", "memory.current"))
        if limit and used and limit[0] != "max":
            free.append(int(limit[0]) - int(used[0]) + _cached_bytes(folder))
    return max(0, min(free)) if free else None


def return_freed_memory() -> None:
    """Have glibc give to the system what this process has freed; other libraries do so by themselves."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _cached_bytes(group: Path) -> int:
    lines = map(str.split, _read_lines(group / "memory.stat"))
    return sum(int(words[1]) for words in lines if words[0] in ("active_file", "inactive_file"))


def _quota_v2(root: Path) -> float | None:
    """`cpu.max` is "quota period" in microseconds, or "max period". The tightest parent counts."""
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
    """The folder of this process's group and its parents, as far as they are visible."""
    own = root
    for line in _read_lines(Path("/proc/self/cgroup")):
        if line.startswith("0::/"):
            own = root / line.removeprefix("0::/")
    return [folder for folder in (own, *own.parents) if folder == root or root in folder.parents]


def _read_words(path: Path) -> list[str]:
    return " ".join(_read_lines(path)).split()


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # no such controller here
        return []
