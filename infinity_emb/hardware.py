"""What this machine lets us use: cores within the container's limits.

Knows nothing of torch. Linux's control groups are read as files; elsewhere all cores count.
"""

from __future__ import annotations

import os
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


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
