"""Write the page on the command line from the argument parser."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from unittest import mock

from infinity_emb.cli.parser import build_parser

_INTRODUCTION = """\
# Command line

Generated from the argument parser. `infinity_emb COMMAND --help` prints the same text;
[settings](../settings.md) explains each option of `v2` at length, with its environment variable.

Exit codes: 0 after a regular end, 1 after a failed start or the loss of a device, 2 after a usage error.
"""


def write_cli_page() -> str:
    """Return the page as Markdown: the help of the program and of each command but the deprecated ones."""
    with mock.patch.dict(os.environ, {"COLUMNS": "84", "NO_COLOR": "1"}):
        helps = dict(_iterate_helps("infinity_emb", build_parser()))
    sections = [f"## `{title}`\n\n```text\n{text.rstrip()}\n```\n" for title, text in helps.items()]
    return "\n".join([_INTRODUCTION, *sections])


def _iterate_helps(title: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    if "Deprecated" in (parser.description or ""):
        return
    yield title, parser.format_help()
    for name, command in getattr(parser, "commands", {}).items():
        yield from _iterate_helps(f"{title} {name}", command)
