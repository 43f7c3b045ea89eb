"""Check that every guarantee in SECURITY.md names a test, and that these and those of known attacks exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text()
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE + (ROOT / "CONTRIBUTING.md").read_text())


def test_every_promise_names_a_test_that_exists() -> None:
    assert len(NAMED) > 25
    for path, name in NAMED:
        assert f"def {name}(" in (ROOT / path).read_text(), name


def test_every_promise_has_a_test() -> None:
    promises = PAGE.partition("## Guarantees")[2].partition("## Not guaranteed")[0]
    assert promises.count("\n- ") > 25
    for promise in re.split(r"\n- ", promises)[1:]:
        assert "tests/" in promise, promise


def test_every_actor_of_the_threat_model_has_guarantees() -> None:
    """A row may say more: a client with a key, or any client if no key is set."""
    table = PAGE.partition("| actor |")[2].partition("## Guarantees")[0]
    actors = re.findall(r"^\| ((?:a|the|somebody) [^|,]+)", table, flags=re.MULTILINE)
    headings = re.findall(r"^### (.+)$", PAGE, flags=re.MULTILINE)
    assert len(actors) > 5
    assert [actor.strip() for actor in actors] == [heading[0].lower() + heading[1:] for heading in headings]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda", "Dockerfile.rocm"])
def test_the_image_runs_as_nobody_in_particular_and_holds_no_secret(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    last_stage = lines[max(at for at, line in enumerate(lines) if line.startswith("FROM ")) :]
    users = [line.split()[1] for line in last_stage if line.startswith("USER ")]
    assert users
    assert users[-1] not in ("0", "root")
    settings = [line for line in lines if line.startswith(("ENV ", "ARG "))]
    assert not any(word in line for line in settings for word in ("KEY", "TOKEN", "SECRET"))
    assert any(line.startswith("HEALTHCHECK") for line in last_stage)
