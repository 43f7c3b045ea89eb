"""The run of tests itself: a worker that crashes fails one test, and the others are run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
