"""Links between pages lead to files and headings that exist, in the repository and on the site."""

from __future__ import annotations

import re

import pytest
import yaml

from scripts.site.cli_page import write_cli_page
from scripts.site.pages import (
    REPOSITORY,
    ROOT_PAGES,
    is_external,
    list_anchors,
    list_decisions,
    list_links,
    list_pages,
    read_page,
    resolve,
    slugify,
)
from scripts.site.rest_page import write_rest_page

GENERATED = {"docs/reference/cli.md": write_cli_page, "docs/reference/rest.md": write_rest_page}
NAV = re.findall(r": (\S+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def anchors() -> dict[str, list[str]]:
    """Page → anchors of its headings, generated pages included."""
    pages = {page: list_anchors(read_page(page)) for page in list_pages()}
    return pages | {page: list_anchors(write()) for page, write in GENERATED.items()}


@pytest.mark.parametrize("page", [*list_pages(), *GENERATED])
def test_every_link_leads_somewhere(page: str, anchors: dict[str, list[str]]) -> None:
    text = GENERATED[page]() if page in GENERATED else read_page(page)
    for link in list_links(text):
        if is_external(link):
            continue
        target, anchor = resolve(page, link)
        assert target in GENERATED or (REPOSITORY / target).exists(), link
        assert not anchor or anchor in anchors[target], link


def test_every_page_is_in_the_navigation_once() -> None:
    of_docs = [page.removeprefix("docs/") for page in [*list_pages(), *GENERATED] if page.startswith("docs/")]
    assert sorted([*NAV, *list_decisions()]) == sorted([*of_docs, *ROOT_PAGES.values()])


def test_pictures_have_a_text_for_those_who_cannot_see_them() -> None:
    for page in list_pages():
        assert not re.search(r"!\[\s*\]\(", read_page(page)), page


def test_drawings_load_nothing_and_have_a_dark_form() -> None:
    for path in (REPOSITORY / "docs" / "images").glob("*.svg"):
        drawing = path.read_text(encoding="utf-8")
        assert "prefers-color-scheme:dark" in drawing, path.name
        assert not re.search(r"(?:href|url)\W+https?:", drawing), path.name
        assert "<title" in drawing, path.name


@pytest.mark.parametrize(
    ("title", "anchor"),
    [
        ("Tests of other projects", "tests-of-other-projects"),
        ("@huggingface/inference", "huggingfaceinference"),
        ("2026-11-23, CPU: int8", "2026-11-23-cpu-int8"),
        ("`--engine auto`", "--engine-auto"),
        ("[A link](page.md) and `code`", "a-link-and-code"),
    ],
)
def test_anchors_are_those_of_github(title: str, anchor: str) -> None:
    assert slugify(title) == anchor


def test_the_configuration_of_the_site_loads_nothing_from_elsewhere() -> None:
    text = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    config = yaml.load(re.sub(r"!!python/\S+", "", text), yaml.SafeLoader)
    assert config["theme"]["font"] is False
    assert config["strict"] is True
    assert "extra_javascript" not in config
