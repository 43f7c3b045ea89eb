"""List the modules of a sentence-transformers folder, those in a router included."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from infinity_emb.errors import StartupError
from infinity_emb.hub.detect import read_modules, read_object

_ROUTERS = ("Router", "Asym")


class ModuleFolder(NamedTuple):
    """Class of a module, and the folder of its files, which need not exist."""

    class_name: str
    path: Path


def list_modules(folder: Path) -> list[ModuleFolder]:
    """Return the modules in order; [] without a `modules.json`. Raises StartupError for a wrong file."""
    modules = []
    for module in read_modules(folder):
        name, path = _read_module(module, folder / "modules.json")
        modules.append(ModuleFolder(name, folder / path))
        if name in _ROUTERS:
            modules += _list_routed_modules(folder / path)
    return modules


def _read_module(module: dict[str, Any], source: Path) -> tuple[str, str]:
    path = module.get("path")
    if not isinstance(path, str) or not isinstance(module.get("type"), str):
        raise StartupError(f"{source} has a module without a type or a path; download or save it again")
    _check_separators(path, source)
    return str(module["type"]).rpartition(".")[2], path


def _check_separators(path: str, source: Path) -> None:
    if "\\" in path:
        raise StartupError(f"{source} has the path {path!r}; write it with '/' in place of '\\'")


def _list_routed_modules(folder: Path) -> list[ModuleFolder]:
    source = folder / "router_config.json"
    config = read_object(source) or read_object(folder / "config.json")
    types = config.get("types")
    if not isinstance(types, dict):
        raise StartupError(f"{source} is missing or has no types; copy the whole folder")
    for name in types:
        _check_separators(name, source)
    return [ModuleFolder(str(each).rpartition(".")[2], folder / name) for name, each in types.items()]
