"""Refuse a model folder that refers to files outside it, or that would take unbounded time to read.

Except for configurations and indices of weights, only names, links and sizes are read.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from infinity_emb.errors import StartupError
from infinity_emb.hub.config_files import ConfigField, is_config, walk_fields, walk_file

MAX_FILES = 100_000
MAX_CONFIG_BYTES = 128 * 2**20  # some contain the vocabulary of a word-based model
MAX_TEXT_BYTES = 2**30
_TEXT_SUFFIXES = (".json", ".txt", ".model", ".jinja")
# Building a network takes a Python loop over each of them.
MAX_LAYERS = 2_000
MAX_LABELS = 1_000_000
_REPEATED_PARTS = re.compile(r"(^|_)(layers?|blocks?|experts|stages?|depths?|repeats|codebooks)$")
_LABELS = "num_labels"
# The file that says which part of the weights is in which file, with the name of a variant or without.
_INDEX = re.compile(r"\.index\.(.*\.)?json$")


def check_folder(folder: Path) -> None:
    """Raise StartupError for a folder with links to the outside, special files, or too much to read."""
    inside = _list_trusted_folders(folder)
    for number, path in enumerate(_walk_entries(folder), 1):
        if number > MAX_FILES:
            raise StartupError(
                f"folder {str(folder)!r} has more than {MAX_FILES} files; give one with a model's files only"
            )
        _check_entry(path, inside)
        if _INDEX.search(path.name):
            _check_index(path)
    for field in walk_fields(folder):
        _check_module_path(field)
        limit = MAX_LABELS if field.key == _LABELS else MAX_LAYERS
        is_repeated = field.key == _LABELS or _REPEATED_PARTS.search(field.key)
        if is_repeated and isinstance(field.value, int) and field.value > limit:
            raise StartupError(
                f"{field.path} has {field.key} = {field.value}, the limit is {limit}; correct the file"
            )


def _list_trusted_folders(folder: Path) -> tuple[str, ...]:
    """Return the folder and, for a snapshot in the hub's cache, the folder of the files it links to.

    Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    inside = [os.path.realpath(folder)]
    for root in (Path(os.path.abspath(folder)), Path(inside[0])):
        blobs = root.parent.parent / "blobs"
        is_snapshot = root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--")
        if is_snapshot and not blobs.is_symlink():  # the hub's cache has a folder there
            inside.append(os.path.realpath(blobs))
    return tuple(inside)


def _walk_entries(folder: Path) -> Iterator[Path]:
    for current, folders, names in os.walk(folder):
        yield from (Path(current, name) for name in (*folders, *names))


def _check_entry(path: Path, inside: tuple[str, ...]) -> None:
    if path.is_symlink():
        target = os.path.realpath(path)
        if not any(os.path.commonpath((root, target)) == root for root in inside):
            raise StartupError(
                f"{str(path)!r} is a link to {target!r}, outside of the model's folder; copy the file there"
            )
    try:
        status = path.stat()
    except OSError:  # a dangling link, or one to itself: the libraries report a missing file
        return
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise StartupError(f"{str(path)!r} is neither a file nor a folder; remove it from the model's folder")
    is_parsed = is_config(path.name) or _INDEX.search(path.name)
    limit = MAX_CONFIG_BYTES if is_parsed else MAX_TEXT_BYTES
    if path.suffix in _TEXT_SUFFIXES and status.st_size > limit:
        raise StartupError(f"{str(path)!r} has {status.st_size} bytes, the limit for such a file is {limit}")


def _check_index(path: Path) -> None:
    for field in walk_file(path):
        if "weight_map" in field.keys:
            _check_inside(field.value, path)


def _check_module_path(field: ConfigField) -> None:
    """Check the folder of a module, and of one inside a Router, where it is a key."""
    if field.path.name == "modules.json" and field.key == "path":
        _check_inside(field.value, field.path)
    if field.keys[-2:-1] == ("types",):
        _check_inside(field.key, field.path)


def _check_inside(name: object, source: Path) -> None:
    path = PurePosixPath(str(name))
    if path.is_absolute() or ".." in path.parts:
        raise StartupError(
            f"{str(source)!r} names {str(name)[:200]!r}, outside of the model's folder; copy the file there"
        )
