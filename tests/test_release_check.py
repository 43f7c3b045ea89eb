"""A release has one version: the package's, the changelog's and the tag's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from scripts.release_check import ROOT, find_problems, main, read_version

RELEASED = "# Changelog\n\n## 1.2.0 (2026-12-01)\n\n### Fixed\n\n## 1.1.0 (2026-11-01)\n"
UNRELEASED = RELEASED.replace("2026-12-01", "unreleased")


@pytest.mark.parametrize(
    ("version", "changelog", "tag"),
    [
        ("1.2.0", RELEASED, "v1.2.0"),
        ("1.2.0", RELEASED, None),
        ("1.2.0", UNRELEASED, None),
    ],
)
def test_what_agrees_is_no_problem(version: str, changelog: str, tag: str | None) -> None:
    assert not list(find_problems(version, changelog, tag))


@pytest.mark.parametrize(
    ("version", "changelog", "tag", "problem"),
    [
        ("1.3.0", UNRELEASED, None, "version 1.3.0, CHANGELOG.md starts with 1.2.0"),
        ("1.2.0", RELEASED, "v1.1.0", "the tag must be v1.2.0"),
        ("1.2.0", RELEASED, "1.2.0", "the tag must be v1.2.0"),
        ("1.2.0", UNRELEASED, "v1.2.0", "write the date"),
        ("1.2.0", RELEASED.replace("2026-12-01", "soon"), None, "'soon'"),
        ("1.2.0", "# Changelog\n", None, "no heading"),
    ],
)
def test_a_disagreement_is_named(version: str, changelog: str, tag: str | None, problem: str) -> None:
    [found] = find_problems(version, changelog, tag)
    assert problem in found


def test_this_repository_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0
    assert read_version(ROOT) in capsys.readouterr().out


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A package of version 1.2.0 with a released changelog, not under git yet."""
    (tmp_path / "pyproject.toml").write_text('[tool.hatch.version]\npath = "version.py"\n')
    (tmp_path / "version.py").write_text('__version__ = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(RELEASED)
    return tmp_path


def test_the_tag_of_the_current_commit_counts(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
        subprocess.run(["git", "-C", checkout, *identity, *arguments], check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "-m", "First")
    git("tag", "v1.1.0")
    assert main(checkout) == 1
    assert "the tag is v1.1.0" in capsys.readouterr().out

    git("commit", "--allow-empty", "-m", "Second")
    assert main(checkout) == 0, "the tag stands on an older commit"

    git("tag", "v1.2.0")
    assert main(checkout) == 0


def test_without_git_there_is_no_tag(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(checkout) == 0


def test_a_version_that_is_not_found_is_an_error(checkout: Path) -> None:
    (checkout / "version.py").write_text("version = 1\n")
    with pytest.raises(ValueError, match=r"version\.py has no line"):
        main(checkout)
