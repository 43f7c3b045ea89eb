"""The time to the first vector: which command is run, and how the log of a start is read."""

from __future__ import annotations

from pathlib import Path

from benchmarks.newcomer import REPOSITORY, add_up_imports, find_summary, make_environ, read_curl


def test_the_command_is_that_of_the_readme() -> None:
    command = read_curl(REPOSITORY)
    assert command.startswith("curl http://localhost:7997/embeddings ")
    assert "Paris" in command


def test_imports_are_added_up_by_package() -> None:
    log = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:       500 |        500 |   torch.nn\n"
        "import time:      2500 |       3000 | torch\n"
        'import time:       100 |        100 | json\n{"message": "starting"}\n'
    )
    assert add_up_imports(log) == {"torch": 3.0, "json": 0.1}


def test_the_summary_is_found_among_other_lines() -> None:
    log = 'make: a line\n{"message": "loading"}\n{"message": "listening", "summary": {"first_vector_s": 5}}\n'
    assert find_summary(log) == {"first_vector_s": 5}


def test_the_environment_is_that_of_a_newcomer(tmp_path: Path) -> None:
    environ = make_environ(tmp_path / "home")
    assert environ["HOME"] == str(tmp_path / "home")
    assert not [name for name in environ if name.startswith(("PYTHON", "INFINITY_", "HF_", "VIRTUAL_ENV"))]
