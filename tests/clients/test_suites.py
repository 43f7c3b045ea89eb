"""Test suites of other projects, run by their own pytest against a live server."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import Asked
from tests.clients.environments import ENVIRONMENTS, HERE, python_of
from tests.clients.test_clients import LIVE, NEEDED_PYTHON, PAGE
from tests.support.server_process import DEADLINE_S

# Environment → the script with its tests.
SUITES = {"langchain-tests": "with_langchain.py", "mteb": "with_mteb.py"}
TABLE = PAGE.partition("\n## Tests of other projects\n")[2]
ROWS = re.findall(r"^\| `([\w-]+)`.*? \| ([\d.]+) \| (\d+) of (\d+)", TABLE, re.MULTILINE)


@pytest.mark.parametrize("name", [pytest.param(name, marks=LIVE) for name in SUITES])
def test_as_many_pass_as_the_page_says(
    name: str, asked: Asked, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("all_clients", default=False):
        pytest.skip("many packages: make test-clients")
    if sys.version_info < NEEDED_PYTHON:
        pytest.skip("the lists of packages are for Python 3.11 and newer")
    command = [
        str(python_of(name)),
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--noconftest",  # ours need packages of the tests' own environment
        "-o",
        "asyncio_mode=auto",
    ]
    done = subprocess.run(
        [*command, "-c", os.devnull, f"--rootdir={tmp_path}", str(HERE / "suites" / SUITES[name])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=4 * DEADLINE_S,
        check=False,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PYTHONPATH": str(HERE / "deeper"),
            "HF_HUB_OFFLINE": "1",
            "QUESTION": json.dumps(dataclasses.asdict(asked)),
        },
    )
    [passed] = [row[2] for row in ROWS if row[0] == name]
    assert re.search(rf"\b{passed} passed", done.stdout), done.stdout[-4000:] + done.stderr[-2000:]


def test_the_page_lists_every_suite_in_the_version_that_is_tested() -> None:
    assert [row[0] for row in ROWS] == list(SUITES)
    for name, version, *_ in ROWS:
        assert f"{name}=={version}" in ENVIRONMENTS[name].asked
