"""Hooks of MkDocs: add pages from beside docs/ and from code, and adapt all of them."""

from __future__ import annotations

from typing import Any

from mkdocs.structure.files import File

from scripts.site.adapt import adapt_page
from scripts.site.cli_page import write_cli_page
from scripts.site.pages import ROOT_PAGES, list_decisions, read_page
from scripts.site.rest_page import write_rest_page

GENERATED = {"reference/cli.md": write_cli_page, "reference/rest.md": write_rest_page}


def on_config(config: Any) -> None:
    """Add the decisions to the last section of the navigation."""
    (section,) = config.nav[-1].values()
    section.append({"Decisions": [{title: page} for page, title in list_decisions().items()]})


def on_files(files: Any, *, config: Any) -> Any:
    """Add the pages that are not files in docs/."""
    for source, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=read_page(source)))
    for page, write in GENERATED.items():
        files.append(File.generated(config, page, content=write()))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Adapt the page."""
    return adapt_page(markdown, page.file.src_uri)
