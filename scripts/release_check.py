"""Check that the version of the package, the newest heading of CHANGELOG.md and the git tag agree.

Prints one line per disagreement and exits with code 1. The tag counts only on its own commit.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
_VERSION_FILE = re.compile(r'^\[tool\.hatch\.version\]\npath = "([^"]+)"$', re.MULTILINE)
_VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)  # hatch finds the same line
_HEADING = re.compile(r"^## (\S+) \(([^)]+)\)$", re.MULTILINE)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def find_problems(version: str, changelog: str, tag: str | None) -> Iterator[str]:
    """Yield one sentence per disagreement.

    changelog: its text, with headings such as `## 1.2.0 (2026-12-01)` or `## 1.2.0 (unreleased)`.
    tag: of the current commit, such as `v1.2.0`.
    """
    heading = _HEADING.search(changelog)
    if heading is None:
        yield "CHANGELOG.md has no heading such as `## 1.2.0 (unreleased)`"
        return
    newest, state = heading.groups()
    if newest != version:
        yield f"the package has version {version}, CHANGELOG.md starts with {newest}"
    if state != "unreleased" and not _DATE.fullmatch(state):
        yield f"CHANGELOG.md has {state!r} behind {newest}; write `unreleased` or a date such as 2026-12-01"
    if tag is not None and tag != f"v{version}":
        yield f"the tag is {tag}, the package has version {version}: the tag must be v{version}"
    if tag is not None and state == "unreleased":
        yield f"the tag is {tag}, but CHANGELOG.md calls {newest} unreleased: write the date of the release"


def read_version(root: Path) -> str:
    """Read the version where hatch reads it: in the file that pyproject.toml names."""
    named = _find(_VERSION_FILE, root / "pyproject.toml", "[tool.hatch.version] with a path")
    return _find(_VERSION, root / named, 'line `__version__ = "…"`')


def _find(pattern: re.Pattern[str], path: Path, what: str) -> str:
    found = pattern.search(path.read_text())
    if found is None:
        raise ValueError(f"{path} has no {what}")
    return found[1]


def read_tag(root: Path) -> str | None:
    """Read the version tag of the current commit; None without one, or outside of a git checkout."""
    command = ["git", "-C", str(root), "tag", "--points-at", "HEAD", "--list", "v[0-9]*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return next(iter(done.stdout.split()), None)


def main(root: Path = ROOT) -> int:
    """Print the disagreements; return the exit code."""
    version, tag = read_version(root), read_tag(root)
    problems = list(find_problems(version, (root / "CHANGELOG.md").read_text(), tag))
    print("\n".join(problems) or f"version {version}, CHANGELOG.md and {tag or 'no tag'} agree")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
