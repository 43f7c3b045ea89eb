"""Find the folder of a model on this machine, or say which folder to give."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from infinity_emb.errors import StartupError

logger = logging.getLogger("infinity_emb")

_MARKER_FILES = ("config.json", "modules.json", "adapter_config.json")
_CACHE_PREFIX = "models--"  # of folders in the cache of the hub
_MAX_SHOWN = 5


def find_folder(model_id: str) -> Path | None:
    """Return the folder that the id names; None if it can only be a name on the hub.

    For a model's folder in the hub's cache, that is its snapshot. Raises StartupError.
    """
    if not model_id.strip():
        raise StartupError("the model id is empty; give a model id of the hub or a local folder")
    path = Path(os.path.abspath(os.path.expanduser(model_id)))
    if path.is_dir():
        _check_utf8(path)
        return _find_in(path)
    if path.exists():
        raise StartupError(f"{model_id!r} is a file; give the folder that holds the model's config.json")
    if model_id.startswith(("/", "./", "../", "~")):
        raise StartupError(f"no folder {str(path)!r}; check the path, or give a model id of the hub")
    return None


def _check_utf8(path: Path) -> None:
    """Raise StartupError for a path that the reader of safetensors refuses."""
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise StartupError(
            f"the path {str(path)!r} is not UTF-8, and no library opens weights there; rename the folder, or"
            " give a link to it (ln -s)"
        ) from exc


def is_model_folder(path: Path) -> bool:
    """Return true for a folder with the configuration of a model or of an adapter."""
    return any((path / name).is_file() for name in _MARKER_FILES)


def _find_in(path: Path) -> Path:
    if is_model_folder(path):
        return path
    # A copied folder may name, or link to, another model of this machine.
    snapshots = os.path.join(os.path.realpath(path), "snapshots")
    inside = (each for each in _list_snapshots(path) if os.path.dirname(os.path.realpath(each)) == snapshots)
    snapshot = next(filter(is_model_folder, inside), None)
    if snapshot is None:
        raise StartupError(f"folder {str(path)!r} is not a model: {_explain_no_model(path)}")
    logger.info("%s is a folder in the cache of the hub; using its snapshot %s", path, snapshot.name)
    return snapshot


def _list_snapshots(path: Path) -> list[Path]:
    """Return the snapshot that the main branch points to, then the others, the latest first."""
    folder, main = path / "snapshots", path / "refs" / "main"
    if not folder.is_dir():
        return []
    latest = main.read_text(encoding="utf-8", errors="replace").strip() if main.is_file() else ""
    times = {each: each.lstat().st_mtime for each in folder.iterdir()}
    return sorted(times, key=lambda each: (each.name != latest, -times[each]))


def _explain_no_model(path: Path) -> str:
    linked = next(filter(is_model_folder, _list_snapshots(path)), None)
    if linked:
        target = os.path.realpath(linked)
        return f"its snapshot {linked.name!r} is a link out of this folder; give its target {target!r}"
    entries = sorted(path.iterdir())
    if any(each.suffix == ".gguf" for each in entries):
        return "it holds GGUF files, which llama.cpp computes; give a model with *.safetensors files"
    cached = [each.name for each in entries if each.name.startswith(_CACHE_PREFIX)]
    if cached:
        name = cached[0].removeprefix(_CACHE_PREFIX).replace("--", "/")
        return f"it is the cache of the hub; give the model id, such as {name!r}"
    models = [each.name for each in entries if each.is_dir() and is_model_folder(each)]
    if models:
        shown = ", ".join(models[:_MAX_SHOWN]) + (", …" if len(models) > _MAX_SHOWN else "")
        return f"the models are in folders below it; give one of them: {shown}"
    return "it has neither config.json nor modules.json; give the folder that a model was saved to"
