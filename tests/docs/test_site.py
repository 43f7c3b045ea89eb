"""What the site makes of the pages, and the pages that are generated from code."""

from __future__ import annotations

import re

import pytest

from infinity_emb.cli.parser import build_parser
from scripts.site.adapt import SOURCE_URL, adapt_lists, lead, list_arguments
from scripts.site.cli_page import write_cli_page
from scripts.site.pages import list_blocks, replace_links
from scripts.site.rest_page import build_document, write_rest_page


@pytest.mark.parametrize(
    ("link", "source", "site_path", "expected"),
    [
        ("engines.md#dtypes", "docs/requests.md", "requests.md", "engines.md#dtypes"),
        ("../requests.md", "docs/guides/bulk.md", "guides/bulk.md", "../requests.md"),
        ("../SECURITY.md", "docs/operating.md", "operating.md", "project/security-policy.md"),
        ("docs/clients.md#ollama", "README.md", "index.md", "clients.md#ollama"),
        ("docs/engines.md", "CONTRIBUTING.md", "project/contributing.md", "../engines.md"),
        ("../../README.md", "docs/guides/gpu.md", "guides/gpu.md", "../index.md"),
        ("../tests/contract", "docs/engines.md", "engines.md", f"{SOURCE_URL}/tree/main/tests/contract"),
        ("../Makefile", "docs/engines.md", "engines.md", f"{SOURCE_URL}/blob/main/Makefile"),
        ("images/packing.svg", "docs/architecture.md", "architecture.md", "images/packing.svg"),
        ("#here", "docs/engines.md", "engines.md", "#here"),
        ("https://example.org/a.md", "docs/engines.md", "engines.md", "https://example.org/a.md"),
    ],
)
def test_a_link_leads_to_a_page_of_the_site_or_to_the_source(
    link: str, source: str, site_path: str, expected: str
) -> None:
    assert lead(link, source, site_path) == expected


def test_lists_are_written_as_python_markdown_reads_them() -> None:
    page = "Text:\n- one\n  - nested\n\n  more of one\n- two\n\nText.\n1. first\n   | a | b |\n"
    assert adapt_lists(page) == (
        "Text:\n\n- one\n    - nested\n\n    more of one\n- two\n\nText.\n\n1. first\n    | a | b |\n"
    )


def test_arguments_in_a_docstring_become_a_list() -> None:
    docstring = (
        "Embed texts.\n\nfirst: one\n    line more.\nsecond, third: both.\nReturns: no argument.\nRaises X.\n"
    )
    assert list_arguments(docstring) == (
        "Embed texts.\n\n- `first`: one\n    line more.\n- `second`, `third`: both.\n"
        "\nReturns: no argument.\nRaises X.\n"
    )


def test_code_is_left_as_it_is() -> None:
    page = "```yaml\nargs:\n- one\n  two\n```\n"
    assert adapt_lists(page) == page
    assert (
        replace_links("```md\n[a](b.md)\n```\n[c](d.md)", lambda link: "x") == "```md\n[a](b.md)\n```\n[c](x)"
    )


def test_blocks_are_found_with_their_language_line_and_heading() -> None:
    page = (
        "# One\n\n    make run\n\n## Two\n\n```sh\ncurl a\n\n    b\n```\n\n- item\n\n  ```text\n  c\n  ```\n"
    )
    assert [tuple(block) for block in list_blocks(page)] == [
        ("", "make run\n", 3, "One"),
        ("sh", "curl a\n\n    b\n", 7, "Two"),
        ("text", "c\n", 15, "Two"),
    ]


def test_every_route_and_object_of_the_api_is_on_its_page() -> None:
    page, document = write_rest_page(), build_document()
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"### `{method.upper()} {path}`\n" in page
    for name, schema in document["components"]["schemas"].items():
        assert f"### {name}\n" in page
        for member in schema.get("properties", ()):
            assert f"| `{member}` |" in page
    assert "### `POST /admin/models`" in page


def test_every_command_but_a_deprecated_one_is_on_its_page() -> None:
    page = write_cli_page()
    for name in build_parser().commands:
        assert (f"## `infinity_emb {name}`\n" in page) is (name != "v1")
    assert "## `infinity_emb models show`\n" in page
    assert re.search(r"^  --model-id TEXT ", page, re.MULTILINE)
