"""List the modules of a sentence-transformers folder, those in a router included."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from infinity_emb.errors import StartupError
from infinity_emb.hub.detect import read_modules, read_object

_ROUTERS = ("Router", "Asym")


class ModuleFolder(NamedTuple):
    """Class of a module, and its folder, which need not exist."""

    class_name: str
    path: Path


def list_modules(folder: Path) -> list[ModuleFolder]:
    """Return the modules in order; [] without a `modules.json`. Raises StartupError for a wrong file."""
    source, modules, given = folder / "modules.json", [], []
    for module in read_modules(folder):
        if "name" in module:
            if str(module["name"]) in given:  # sentence-transformers would leave out the first of them
                raise StartupError(
                    f"{source} has two modules named {module['name']!r}; give each its own name"
                )
            given.append(str(module["name"]))
        name, path = _read_module(module, source)
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
    _check_routes(config, types, source)
    return [ModuleFolder(str(each).rpartition(".")[2], folder / name) for name, each in types.items()]


def _check_routes(config: dict[str, Any], types: dict[str, Any], source: Path) -> None:
    """Raise StartupError for routes that are not lists of modules, and for an unknown default route."""
    routes, parameters = config.get("structure"), config.get("parameters")
    if not isinstance(routes, dict) or not isinstance(parameters, dict):
        raise StartupError(f"{source} needs the objects 'structure' and 'parameters'; copy or save it again")
    for route, names in routes.items():
        unknown = [name for name in names if name not in types] if isinstance(names, list) else []
        if not isinstance(names, list) or not names or unknown:
            what = f"names {unknown[0]!r}, which is not among its types" if unknown else "has no modules"
            raise StartupError(f"{source}: the route {route!r} {what}; correct it, or save the model again")
    default = parameters.get("default_route")
    if default is not None and default not in routes:
        raise StartupError(
            f"{source}: the default route {default!r} is not one of its routes"
            f" {', '.join(routes)}; correct it"
        )
