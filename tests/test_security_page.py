"""SECURITY.md promises nothing without a test, and each test that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text()
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


def test_every_promise_names_a_test_that_exists() -> None:
    assert len(NAMED) > 25
    for path, name in NAMED:
        assert f"def {name}(" in (ROOT / path).read_text(), name


def test_every_promise_has_a_test() -> None:
    promises = PAGE.partition("## What is promised")[2].partition("## What is not")[0]
    for promise in re.split(r"\n- ", promises)[1:]:
        assert "tests/" in promise, promise


def test_the_image_runs_as_nobody_in_particular_and_holds_no_secret() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    last_stage = lines[max(at for at, line in enumerate(lines) if line.startswith("FROM ")) :]
    users = [line.split()[1] for line in last_stage if line.startswith("USER ")]
    assert users
    assert users[-1] not in ("0", "root")
    settings = [line for line in lines if line.startswith(("ENV ", "ARG "))]
    assert not any(word in line for line in settings for word in ("KEY", "TOKEN", "SECRET"))
    assert any(line.startswith("HEALTHCHECK") for line in last_stage)
