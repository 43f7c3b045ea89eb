"""Prefixes under which a file has a network's weights."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from infinity_emb.backends.torch.loaded_weights import Loading, find_prefix

NAMES = ("embeddings.weight", "layer.0.weight", "layer.1.weight", "pooler.weight")


def make_loading(in_file: Iterable[str]) -> Loading:
    """What transformers says of a file with these names; it looks for no prefix."""
    network: Any = SimpleNamespace(state_dict=lambda: dict.fromkeys(NAMES))
    in_file = set(in_file)
    return Loading(network, sorted(set(NAMES) - in_file), sorted(in_file - set(NAMES)), [])


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "0.auto_model.", "layer."])
def test_one_prefix_before_all_names_is_found(prefix: str) -> None:
    assert find_prefix(make_loading(prefix + name for name in NAMES)) == prefix


def test_a_missing_pooler_and_further_weights_do_not_hide_it() -> None:
    names = [f"module.{name}" for name in NAMES if "pooler" not in name]
    assert find_prefix(make_loading([*names, "module.head.weight", "loss.weight"])) == "module."


@pytest.mark.parametrize(
    "in_file",
    [
        NAMES,
        NAMES[:2],
        [f"{tower}.{name}" for tower in ("query", "passage") for name in NAMES],
        [*(f"query.{name}" for name in NAMES), *(f"passage.{name}" for name in NAMES[:3])],
        ["embeddings.weight", *(f"module.{name}" for name in NAMES)],
        [f"x{name}" for name in NAMES],
        [],
    ],
    ids=[
        "whole",
        "incomplete",
        "two towers",
        "a tower and most of another",
        "with and without",
        "no dot",
        "empty",
    ],
)
def test_nothing_is_removed_where_it_is_not_clear(in_file: Iterable[str]) -> None:
    assert find_prefix(make_loading(in_file)) == ""
