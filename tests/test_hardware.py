from __future__ import annotations

import ctypes
import os
import platform
import time
from pathlib import Path

import psutil
import pytest

from infinity_emb import hardware
from infinity_emb.hardware import (
    MemoryUse,
    cpu_name,
    free_memory_bytes,
    measure_process_memory,
    num_usable_cpus,
    process_age_s,
    return_freed_memory,
)

NUM_VISIBLE = 16


@pytest.fixture(autouse=True)
def _sixteen_cores_and_the_root_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(NUM_VISIBLE)), raising=False)
    be_in_group(monkeypatch, "/")


def be_in_group(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """This process's control group, as /proc/self/cgroup says it under version 2."""
    read = hardware.read_lines

    def read_lines(path: Path) -> list[str]:
        return ["1:cpu:/", f"0::{name}"] if path == Path("/proc/self/cgroup") else read(path)

    monkeypatch.setattr(hardware, "read_lines", read_lines)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_control_groups_every_visible_core_counts(tmp_path: Path) -> None:
    assert num_usable_cpus(tmp_path) == NUM_VISIBLE
    assert num_usable_cpus(tmp_path / "nothing here") == NUM_VISIBLE


@pytest.mark.parametrize(
    ("cpu_max", "num_cpus"),
    [
        ("max 100000\n", NUM_VISIBLE),
        ("200000 100000\n", 2),
        ("350000 100000\n", 3),  # a fraction is rounded down
        ("199999 100000\n", 1),
        ("50000 100000\n", 1),  # at least 1
        ("1000 100000\n", 1),
        ("6400000 100000\n", NUM_VISIBLE),  # a quota of more than there is
        ("25000 10000\n", 2),
        ("", NUM_VISIBLE),
    ],
)
def test_the_quota_of_version_2_bounds_the_cores(tmp_path: Path, cpu_max: str, num_cpus: int) -> None:
    write(tmp_path / "cpu.max", cpu_max)
    assert num_usable_cpus(tmp_path) == num_cpus


@pytest.mark.parametrize(
    ("quota", "period", "num_cpus"),
    [
        ("-1\n", "100000\n", NUM_VISIBLE),
        ("0\n", "100000\n", NUM_VISIBLE),
        ("200000\n", "100000\n", 2),
        ("350000\n", "100000\n", 3),
        ("50000\n", "100000\n", 1),
        ("6400000\n", "100000\n", NUM_VISIBLE),
    ],
)
def test_the_quota_of_version_1_bounds_the_cores(
    tmp_path: Path, quota: str, period: str, num_cpus: int
) -> None:
    write(tmp_path / "cpu" / "cpu.cfs_quota_us", quota)
    write(tmp_path / "cpu" / "cpu.cfs_period_us", period)
    assert num_usable_cpus(tmp_path) == num_cpus


def test_half_a_version_1_is_no_quota(tmp_path: Path) -> None:
    write(tmp_path / "cpu" / "cpu.cfs_quota_us", "200000\n")
    assert num_usable_cpus(tmp_path) == NUM_VISIBLE


@pytest.mark.parametrize(
    ("own", "parent", "root", "num_cpus"),
    [("400000", "200000", "max", 2), ("200000", "400000", "max", 2), ("max", "max", "300000", 3)],
)
def test_the_tightest_quota_of_the_own_group_and_its_parents_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, parent: str, root: str, num_cpus: int
) -> None:
    be_in_group(monkeypatch, "/kubepods/pod7")
    write(tmp_path / "kubepods" / "pod7" / "cpu.max", f"{own} 100000\n")
    write(tmp_path / "kubepods" / "cpu.max", f"{parent} 100000\n")
    write(tmp_path / "cpu.max", f"{root} 100000\n")
    write(tmp_path / "kubepods" / "pod8" / "cpu.max", "100000 100000\n")  # somebody else's

    assert num_usable_cpus(tmp_path) == num_cpus


def test_an_own_group_that_is_not_visible_here_leaves_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_in_group(monkeypatch, "/docker/of-the-host")
    write(tmp_path / "cpu.max", "200000 100000\n")
    assert num_usable_cpus(tmp_path) == 2


def test_the_affinity_mask_bounds_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 9}, raising=False)
    assert num_usable_cpus(tmp_path) == 3
    write(tmp_path / "cpu.max", "800000 100000\n")
    assert num_usable_cpus(tmp_path) == 3
    write(tmp_path / "cpu.max", "200000 100000\n")
    assert num_usable_cpus(tmp_path) == 2


@pytest.mark.parametrize(("cpu_count", "num_cpus"), [(8, 8), (None, 1)])
def test_where_there_is_no_affinity_mask_all_cores_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_count: int | None, num_cpus: int
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cpu_count)
    assert num_usable_cpus(tmp_path) == num_cpus


def test_this_machine_has_a_core() -> None:
    assert num_usable_cpus() >= 1


# Memory


def write_meminfo(folder: Path, free_kb: int) -> Path:
    write(folder / "meminfo", f"MemTotal: 9999 kB\nMemAvailable:    {free_kb} kB\n")
    return folder / "meminfo"


def limit_memory(group: Path, limit: str, used: int, cached: int) -> None:
    write(group / "memory.max", limit)
    write(group / "memory.current", str(used))
    write(group / "memory.stat", f"anon 1\ninactive_file {cached - 1}\nactive_file 1\nslab 5\n")


def test_free_memory_is_what_the_machine_has_where_no_group_limits_it(tmp_path: Path) -> None:
    meminfo = write_meminfo(tmp_path, 2000)
    assert free_memory_bytes(tmp_path / "groups", meminfo) == 2000 * 1024
    limit_memory(tmp_path / "groups", "max\n", 5, 2)
    assert free_memory_bytes(tmp_path / "groups", meminfo) == 2000 * 1024


def test_free_memory_is_what_the_tightest_group_has_and_files_in_memory_are_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_in_group(monkeypatch, "/outer/inner")
    groups = tmp_path / "groups"
    limit_memory(groups / "outer", "1000000", 700_000, 100_000)
    limit_memory(groups / "outer" / "inner", "900000", 300_000, 0)
    assert free_memory_bytes(groups, write_meminfo(tmp_path, 2000)) == 400_000
    limit_memory(groups / "outer" / "inner", "900000", 950_000, 0)
    assert free_memory_bytes(groups, write_meminfo(tmp_path, 2000)) == 0


def test_free_memory_is_unknown_where_the_system_does_not_say(tmp_path: Path) -> None:
    assert free_memory_bytes(tmp_path, tmp_path / "missing") is None


def test_a_process_may_hold_what_the_tightest_group_allows(tmp_path: Path) -> None:
    write(tmp_path / "meminfo", "MemTotal:       1000 kB\nMemAvailable:     500 kB")
    write(tmp_path / "statm", "100 7 3 1 0 10 0")
    files = {"meminfo": tmp_path / "meminfo", "statm": tmp_path / "statm"}
    used = 7 * os.sysconf("SC_PAGE_SIZE")
    assert measure_process_memory(tmp_path / "groups", **files) == MemoryUse(used, 1_024_000)
    write(tmp_path / "groups" / "memory.max", "max")
    assert measure_process_memory(tmp_path / "groups", **files) == MemoryUse(used, 1_024_000)
    write(tmp_path / "groups" / "memory.max", "4096")
    assert measure_process_memory(tmp_path / "groups", **files) == MemoryUse(used, 4096)


def test_memory_is_0_where_the_system_does_not_say(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing here"
    assert measure_process_memory(nothing, nothing, nothing) == MemoryUse(0, 0)


def test_returning_memory_is_harmless_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    return_freed_memory()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())  # a C library without it
    return_freed_memory()


def test_the_processor_has_the_name_that_its_maker_gave_it(tmp_path: Path) -> None:
    write(
        tmp_path / "cpuinfo", "processor\t: 0\nmodel name\t: Some CPU: 9\nprocessor\t: 1\nmodel name\t: x\n"
    )
    assert cpu_name(tmp_path / "cpuinfo") == "Some CPU: 9"
    assert cpu_name(tmp_path / "nowhere") == platform.machine() != ""


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="reads Linux's files")
def test_the_age_of_a_process_counts_from_its_start() -> None:
    age_s = psutil.Process().create_time()
    assert process_age_s() == pytest.approx(time.time() - age_s, abs=2)


def test_the_age_of_a_process_is_a_lower_bound_where_its_start_is_unknown(tmp_path: Path) -> None:
    assert 0 < process_age_s(tmp_path / "missing") <= process_age_s() + 0.05
