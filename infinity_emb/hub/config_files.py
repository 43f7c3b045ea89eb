"""Read the fields of all JSON configurations in a model folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Besides those with "config" in their name.
_CONFIGS = frozenset({"modules.json", "special_tokens_map.json"})


class ConfigField(NamedTuple):
    """One value that is neither an object nor a list, and its location.

    keys: path of keys to it, outermost first; elements of a list have the keys of the list.
    is_in_list: whether it is an element of a list.
    """

    path: Path
    keys: tuple[str, ...]
    value: object
    is_in_list: bool = False

    @property
    def key(self) -> str:
        """The innermost key."""
        return self.keys[-1] if self.keys else ""


def is_config(name: str) -> bool:
    """Return true for the name of a file that libraries read options and class names from."""
    return name in _CONFIGS or (name.endswith(".json") and "config" in name)


def find_configs(folder: Path) -> Iterator[Path]:
    """Return the configurations in a folder and its subfolders, following links, each folder once."""
    seen = set()
    for current, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(current)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(current, name) for name in names if is_config(name))


def walk_fields(folder: Path) -> Iterator[ConfigField]:
    """Return every field of every configuration in a folder."""
    for path in find_configs(folder):
        yield from walk_file(path)


def walk_file(path: Path) -> Iterator[ConfigField]:
    """Return every field of a JSON file, none of one that cannot be read: the libraries cannot either."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError):
        return
    waiting: list[tuple[tuple[str, ...], object, bool]] = [((), config, False)]
    while waiting:
        keys, value, is_in_list = waiting.pop()
        if isinstance(value, dict):
            waiting += (((*keys, key), each, False) for key, each in value.items())
        elif isinstance(value, list):
            waiting += ((keys, each, True) for each in value)
        else:
            yield ConfigField(path, keys, value, is_in_list)
