"""The run of tests itself: slow files are begun first, and a worker that crashes fails one test."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from tests.support.crashed_workers import FinishingScheduling
from tests.support.slow_files import SLOW_FILES

ROOT = Path(__file__).parents[1]
CONFTEST = """
import pytest
from tests.support.crashed_workers import FinishingScheduling

def pytest_xdist_make_scheduler(config, log):
    return FinishingScheduling(config, log)
"""
CRASHES = """
import os, pytest

@pytest.mark.parametrize("number", range(6))
def test_crashes(number):
    if number == 5:
        os._exit(1)
"""
PASSES = """
import time, pytest

@pytest.mark.parametrize("number", range({}))
def test_passes(number):
    time.sleep(0.1)
"""


@pytest.mark.parametrize("tests_per_file", [1, 2])
def test_the_tests_that_a_crashed_worker_leaves_are_run_once(tmp_path: Path, tests_per_file: int) -> None:
    tmp_path.joinpath("conftest.py").write_text(CONFTEST)
    tmp_path.joinpath("test_crashing.py").write_text(CRASHES)
    for name in "abcdefg":
        tmp_path.joinpath(f"test_{name}.py").write_text(PASSES.format(tests_per_file))
    options = [
        "--numprocesses",
        "2",
        "--dist",
        "loadfile",
        "--max-worker-restart",
        "2",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--quiet", *options, str(tmp_path)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert f"1 failed, {5 + 7 * tests_per_file} passed" in done.stdout


def test_every_slow_file_exists() -> None:
    assert [file for file in SLOW_FILES if not (ROOT / file).is_file()] == []
    assert len(set(SLOW_FILES)) == len(SLOW_FILES)


def test_slow_files_are_begun_first(tmp_path: Path) -> None:
    """pytest-xdist begins with the files of most tests."""
    tmp_path.joinpath("conftest.py").write_text(CONFTEST)
    slow = [tmp_path / file for file in SLOW_FILES[:2]]
    for file in slow:
        file.parent.mkdir(parents=True)
        file.write_text(PASSES.format(1))
    for name in "abcd":
        tmp_path.joinpath(f"test_{name}.py").write_text(PASSES.format(4))
    options = ["--numprocesses", "1", "--dist", "loadfile", "--verbose", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    passed = [line for line in done.stdout.splitlines() if "PASSED" in line]
    assert len(passed) == 2 + 4 * 4
    assert [file in line for file, line in zip(SLOW_FILES[:2], passed, strict=False)] == [True, True]


class CrashedWorker:
    """A worker that cannot be sent anything any more."""

    shutting_down = False

    def send_runtest_some(self, indices: list[int]) -> None:
        raise OSError("cannot send (already closed?)")


def test_the_tests_that_a_worker_could_not_be_sent_are_left_for_others() -> None:
    scheduling: Any = FinishingScheduling.__new__(FinishingScheduling)
    worker = CrashedWorker()
    tests = ["test_a.py::test_1", "test_a.py::test_2"]
    scheduling.workqueue = OrderedDict({"test_a.py": dict.fromkeys(tests, False)})
    scheduling.assigned_work, scheduling.registered_collections = {}, {worker: tests}
    scheduling._assign_work_unit(worker)
    assert not scheduling.workqueue
    assert scheduling.remove_node(worker) == tests[0]
    assert scheduling.workqueue == {"test_a.py": {tests[0]: True, tests[1]: False}}
