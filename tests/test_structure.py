"""scripts/structure.py: figures of a small package, stacks of small functions, and the real limits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from scripts.structure import PACKAGE, REPOSITORY, Limit, find_exceeded, main, measure_path
from scripts.structure_path import MarkerMissing, join_stacks
from scripts.structure_source import Finding, measure_source, opens_with_verb

SOURCE = '''"""What it is. Knows nothing of others."""

class Long:
    """A noun phrase is fine here."""

    def first(self):
        """The first."""

    @property
    def second(self):
        """The second."""

def length_of(value):  # noqa: D103
    """Return the length."""
    def inner():
        """Inner part."""
    try:
        object.__setattr__(value, "a", 1)  # type: ignore
    except (ValueError, Exception):
        pass
    except BaseException:
        pass
    except ValueError:
        pass
'''

PATH_SOURCE = """
import asyncio
from concurrent.futures import ThreadPoolExecutor

def innermost():
    return 1

class Job:
    def run(self):
        return [innermost() for _ in range(1)]

async def child(pool):
    return await asyncio.get_running_loop().run_in_executor(pool, Job().run)

class Route:
    async def embeddings(self, pool):
        self.unrelated()
        return await asyncio.ensure_future(child(pool))

    def unrelated(self):
        pass

def make_pool():
    return ThreadPoolExecutor(1)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    (folder / "part").mkdir(parents=True)
    (folder / "__pycache__").mkdir()
    (folder / "py.typed").touch()
    (folder / "__init__.py").touch()
    (folder / "part" / "code.py").write_text(SOURCE)
    return folder


def test_figures_of_a_small_package(package: Path) -> None:
    values = {name: finding.value for name, finding in measure_source(package).items()}
    assert values == {
        "top-level entries": 2,
        "package lines": 24,
        "longest file": 24,
        "longest function": 12,
        "longest class": 9,
        "most methods": 2,
        "type-ignore + noqa": 2,
        "broad excepts": 2,
        "object.__setattr__": 1,
        "functions named *_of": 1,
        '"Knows nothing"': 1,
        "oblique docstrings": 1,
        "docstrings without a verb": 1,
    }


def test_worst_places_are_named(package: Path) -> None:
    findings = measure_source(package)
    assert findings["longest function"].worst[0] == "part/code.py:13 length_of (12)"
    assert findings["docstrings without a verb"].worst == ["part/code.py:6 first (1)"]


def test_folder_without_a_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not the folder of a package"):
        measure_source(tmp_path)


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Return the next batch.", True),
        ("Raises BadInput where there is none.", True),
        ("Load, check and warm up.", True),
        ("\n    Split long texts.", True),
        ("What is loaded.", False),
        ("The model's name.", False),
        ("Likewise.", False),
        ("Rows in another format.", False),
        ("(N, D) float32.", False),
        ("`name` in lower case.", False),
        ("Nearly always true.", False),
        ("", False),
    ],
)
def test_docstring_opens_with_a_verb(docstring: str, expected: bool) -> None:
    assert opens_with_verb(docstring) is expected


def test_only_an_enforced_limit_is_exceeded() -> None:
    limits: Mapping[str, Limit] = {
        "lines": Limit(enforced=10, aim=5),
        "files": Limit(enforced=10, aim=5),
        "rest": Limit(enforced=None, aim=0),
    }
    findings = {"lines": Finding(11, ["a.py (11)"]), "files": Finding(10), "rest": Finding(99)}
    assert find_exceeded(findings, limits) == ["lines: 11, limit 10. a.py (11)"]


def test_check_fails_on_a_package_over_the_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / PACKAGE
    folder.mkdir()
    (folder / "__init__.py").write_text("x = 1\n" * 1000)
    assert main(["--static", "--root", str(tmp_path)]) == 0
    assert main(["--static", "--check", "--root", str(tmp_path)]) == 1
    written = capsys.readouterr()
    assert "longest file: 1000, limit" in written.err
    assert json.loads(written.out.splitlines()[-1])["figures"]["package lines"] == 1000


TRACE = """
import asyncio, json, sys
from pathlib import Path
from scripts.structure_path import Marker, Tracer
sys.path.insert(0, sys.argv[1])
import path

tracer = Tracer(Path(sys.argv[1]), {"end": Marker("path", frozenset({"innermost"}))})

async def run():
    with path.make_pool() as pool, tracer.recording():
        await asyncio.create_task(path.Route().embeddings(pool))

with tracer.installed():
    asyncio.run(run())
(stack,) = tracer.stacks["end"]
calls = [(each.name.rpartition(".")[2], each.owner) for each in stack]
print(json.dumps({"calls": calls, "touched": sorted(tracer.touched)}))
"""


def test_tracer_joins_what_tasks_and_threads_hand_over(tmp_path: Path) -> None:
    """In a process of its own, as threads of other tests would be traced too."""
    (tmp_path / "path.py").write_text(PATH_SOURCE)
    command = [sys.executable, "-c", TRACE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "calls": [["embeddings", "Route"], ["child", None], ["run", "Job"], ["innermost", None]],
        "touched": ["path.py"],
    }


def test_marker_that_never_fires_is_named() -> None:
    with pytest.raises(MarkerMissing, match="'queued'"):
        join_stacks({"queued": {}}, [])


def test_package_is_within_its_limits() -> None:
    assert find_exceeded(measure_source(REPOSITORY / PACKAGE)) == []


@pytest.mark.model
def test_main_line_of_an_embedding_request_is_within_its_limits() -> None:
    findings = measure_path(REPOSITORY)
    assert find_exceeded(findings) == []
    assert findings["object crossings"].value > 0
