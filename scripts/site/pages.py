"""Read the Markdown pages of the repository: code blocks, headings, and links between files."""

from __future__ import annotations

import bisect
import posixpath
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
# Files beside docs/ that are pages of the site too: path in the repository → path on the site.
ROOT_PAGES = {
    "SECURITY.md": "project/security-policy.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
}

_FENCED = re.compile(
    r"^(?P<indent> *)(?P<fence>```+)(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)
_INDENTED = re.compile(r"(?:\A|(?<=\n\n))(?: {4}[^\n]*\n|\n(?= {4}))+")
_HEADING = re.compile(r"^#{1,6} (?P<title>.+)$", re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()[^()\s<>]+(?=(?: \"[^\"]*\")?\))")
_HIDDEN = "\0"


class Block(NamedTuple):
    """A code block; its language is "" where it is indented."""

    language: str
    text: str
    line: int
    heading: str


def list_pages() -> list[str]:
    """Return every page that is written by hand, as paths in the repository."""
    docs = (path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs").rglob("*.md"))
    return sorted([*docs, *ROOT_PAGES, "README.md"])


def list_decisions() -> dict[str, str]:
    """Return the path in docs/ → the title of each decision, in their order."""
    paths = sorted((REPOSITORY / "docs" / "decisions").glob("*.md"))
    return {
        f"decisions/{path.name}": path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        for path in paths
    }


def read_page(page: str) -> str:
    """Return the Markdown of a page, by its path in the repository."""
    return (REPOSITORY / page).read_text(encoding="utf-8")


def list_blocks(markdown: str) -> list[Block]:
    """Return the fenced blocks, and those indented by four spaces, in order."""
    prose = hide_code(markdown)
    headings = [(match.start(), match["title"]) for match in _HEADING.finditer(prose)]
    found = [(match.start(), match["info"].strip(), match["body"]) for match in _FENCED.finditer(markdown)]
    found += [(match.start(), "", match[0]) for match in _INDENTED.finditer(prose)]
    blocks = []
    for start, language, body in sorted(found):
        place = bisect.bisect(headings, (start, ""))
        heading = headings[place - 1][1] if place else ""
        line = markdown.count("\n", 0, start) + 1
        blocks.append(Block(language, textwrap.dedent(body).strip("\n") + "\n", line, heading))
    return blocks


def list_links(markdown: str) -> list[str]:
    """Return the targets of all links and pictures outside code."""
    return _LINK.findall(hide_code(markdown))


def list_anchors(markdown: str) -> list[str]:
    """Return the anchors of the headings, as GitHub and the site make them."""
    return [slugify(match["title"]) for match in _HEADING.finditer(hide_code(markdown))]


def slugify(title: str) -> str:
    """Return the anchor of a heading."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
    return re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")


def hide_code(markdown: str) -> str:
    """Return the page, as long as before, without the text of its fenced blocks."""
    return _FENCED.sub(lambda match: re.sub(r"[^\n]", _HIDDEN, match[0]), markdown)


def replace_links(markdown: str, replace: Callable[[str], str]) -> str:
    """Return the page with each target of a link outside code replaced."""
    pieces, end = [], 0
    for match in _LINK.finditer(hide_code(markdown)):
        pieces += [markdown[end : match.start()], replace(match[0])]
        end = match.end()
    return "".join([*pieces, markdown[end:]])


def resolve(page: str, target: str) -> tuple[str, str]:
    """Return the path in the repository that a relative link leads to, and its anchor."""
    path, _, anchor = target.partition("#")
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
    return joined, anchor


def is_external(target: str) -> bool:
    """Return true for links with a scheme, such as https or mailto."""
    return re.match(r"[a-z]+:", target) is not None
