from __future__ import annotations

from pathlib import Path

from infinity_emb.cli.settings_page import settings_page
from infinity_emb.config.bulk_options import BulkOptions
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.config.options import list_options
from infinity_emb.config.server_config import ServerConfig

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_committed_page_is_what_the_options_say() -> None:
    """When this fails: python -m infinity_emb.cli.settings_page > docs/settings.md"""
    assert PAGE.read_text() == settings_page()


def test_every_option_has_one_row() -> None:
    rows = [line for line in settings_page().splitlines() if line.startswith("| `--")]
    expected = {
        (f"`{each.flag}`", f"`{each.env}`")
        for config in (EngineArgs, ServerConfig, BulkOptions)
        for each in list_options(config)
    }
    assert len(rows) == len(expected)
    assert {tuple(row.split(" | ")[:2]) for row in (row.removeprefix("| ") for row in rows)} == expected


def test_every_deprecated_name_of_an_option_is_in_the_table_of_deprecations() -> None:
    page = (PAGE.parent / "deprecations.md").read_text()
    for config in (EngineArgs, ServerConfig):
        for option in list_options(config):
            for old in option.spellings[1:]:
                row = f"| `{old.flag}`, `{old.env}` | `{option.flag}` |"
                assert row in page
