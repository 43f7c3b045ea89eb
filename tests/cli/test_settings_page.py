from __future__ import annotations

from pathlib import Path

from infinity_emb.cli.settings_page import settings_page
from infinity_emb.config import EngineArgs, ServerConfig
from infinity_emb.options import (
    env_name,
    flag_name,
    option_fields,
)

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_committed_page_is_what_the_options_say() -> None:
    """When this fails: python -m infinity_emb.cli.settings_page > docs/settings.md"""
    assert PAGE.read_text() == settings_page()


def test_every_option_has_one_row() -> None:
    rows = [line for line in settings_page().splitlines() if line.startswith("| `--")]
    expected = {
        (f"`--{flag_name(each)}`", f"`{env_name(each)}`")
        for config in (EngineArgs, ServerConfig)
        for each in option_fields(config)
    }
    assert len(rows) == len(expected)
    assert {tuple(row.split(" | ")[:2]) for row in (row.removeprefix("| ") for row in rows)} == expected
