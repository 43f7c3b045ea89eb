"""Adapt pages that were written for GitHub, and docstrings, to the site."""

from __future__ import annotations

import posixpath
import re

from scripts.site.pages import REPOSITORY, ROOT_PAGES, hide_code, is_external, replace_links, resolve

SOURCE_URL = "https://github.com/infinity-emb/infinity_emb"
_ITEM = re.compile(r"(?:- |\d\. )(?=\S)")
_ARGUMENT = re.compile(r"(?P<names>[a-z_]+(?:, [a-z_]+)*): (?=\S)")
_SENTENCE = re.compile(r"(Returns|Raises|Source)\b")


def adapt_page(markdown: str, site_path: str) -> str:
    """Return what MkDocs reads for the page at `site_path`."""
    sources = {target: source for source, target in ROOT_PAGES.items()}
    source = sources.get(site_path, f"docs/{site_path}")
    return adapt_lists(replace_links(markdown, lambda link: lead(link, source, site_path)))


def lead(link: str, source: str, site_path: str) -> str:
    """Return where a link of a page of the repository leads on the site."""
    if is_external(link) or link.startswith("#"):
        return link
    target, anchor = resolve(source, link)
    on_site = "index.md" if target == "README.md" else ROOT_PAGES.get(target)
    if target.startswith("docs/") and "." in posixpath.basename(target):
        on_site = target.removeprefix("docs/")
    if on_site is None:
        kind = "tree" if (REPOSITORY / target).is_dir() else "blob"
        return f"{SOURCE_URL}/{kind}/main/{target}"
    relative = posixpath.relpath(on_site, posixpath.dirname(site_path) or ".")
    return f"{relative}#{anchor}" if anchor else relative


def adapt_lists(markdown: str) -> str:
    """Write lists as Python-Markdown wants them: after a blank line, with content indented by four spaces."""
    lines: list[str] = []
    marker_width = 0  # of the list item that the present line may belong to; 0 outside lists
    for line, hidden in zip(markdown.split("\n"), hide_code(markdown).split("\n"), strict=True):
        if item := _ITEM.match(hidden):
            if lines and lines[-1] and not marker_width:
                lines.append("")
            marker_width = len(item[0])
        elif marker_width and line and not line.startswith(" " * marker_width):
            marker_width = 0
        is_continued = bool(marker_width and line and not item)
        lines.append(" " * (4 - marker_width) + line if is_continued else line)
    return "\n".join(lines)


def list_arguments(docstring: str) -> str:
    """Return the docstring with `name: meaning` as an item of a list, and what is returned below it."""
    lines: list[str] = []
    is_item = False
    for line in docstring.split("\n"):
        argument = _ARGUMENT.match(line)
        if argument or (is_item and (not line or _SENTENCE.match(line))):
            if lines and lines[-1] and not (argument and is_item):
                lines.append("")
            is_item = argument is not None
        if argument:
            names = ", ".join(f"`{name}`" for name in argument["names"].split(", "))
            line = f"- {names}: {line[argument.end() :]}"
        elif is_item:
            line = f"    {line.strip()}"
        lines.append(line)
    return "\n".join(lines)
