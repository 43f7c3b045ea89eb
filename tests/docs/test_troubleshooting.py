"""docs/troubleshooting.md quotes messages that the package still has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from scripts.site.pages import REPOSITORY, read_page

PAGE = read_page("docs/troubleshooting.md")
VALUE = "…"


def list_quoted() -> list[str]:
    return re.findall(r"^### `([^`]+)`$", PAGE, re.MULTILINE)


def iterate_texts(source: str) -> Iterator[str]:
    """Yield every text of a module, with `…` for what is put into it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%(\.\d)?[sdrg]", VALUE, node.value)
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values
            )


@pytest.fixture(scope="module")
def texts() -> list[str]:
    paths = (REPOSITORY / "infinity_emb").rglob("*.py")
    return [text for path in paths for text in iterate_texts(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("message", list_quoted())
def test_a_quoted_message_is_one_of_the_package(message: str, texts: list[str]) -> None:
    assert any(message in text.replace("{}", VALUE) for text in texts), "reworded or removed: change the page"


def test_no_message_is_left_out_of_the_test() -> None:
    assert len(list_quoted()) == PAGE.count("\n### `")
