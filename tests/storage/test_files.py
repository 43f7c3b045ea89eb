"""The folder of what is kept, by the environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infinity_emb.storage.files import cache_dir


@pytest.mark.parametrize(
    ("environ", "base"),
    [
        ({"INFINITY_HOME": "/i", "HF_HOME": "/hf", "XDG_CACHE_HOME": "/xdg", "HOME": "/h"}, "/i"),
        ({"HF_HOME": "/hf", "XDG_CACHE_HOME": "/xdg", "HOME": "/h"}, "/hf"),
        ({"XDG_CACHE_HOME": "/xdg", "HOME": "/h"}, "/xdg"),
        ({"HOME": "/h"}, "/h/.cache"),
        ({"INFINITY_HOME": "", "HF_HOME": "", "XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache"),
        ({"INFINITY_HOME": "~/own", "HOME": "/h"}, "/h/own"),
        ({"HF_HOME": "~", "HOME": "/h"}, "/h"),
        ({"HF_HOME": "~other", "HOME": "/h"}, os.path.abspath("~other")),
        ({"INFINITY_HOME": "here/cache", "HOME": "/h"}, os.path.abspath("here/cache")),
    ],
)
def test_the_folder_follows_the_environment(environ: dict[str, str], base: str) -> None:
    assert cache_dir(environ) == Path(base, "infinity_emb")


def test_without_the_variable_home_the_system_says_where_the_home_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path.replace("~", "/from/passwd"))
    assert cache_dir({}) == Path("/from/passwd/.cache/infinity_emb")


def test_a_user_without_a_home_gets_no_folder_named_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    """expanduser leaves ~ as it is for a user id that has no name."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert cache_dir({}) == Path("/.cache/infinity_emb")
