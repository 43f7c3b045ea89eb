"""List the files of a model's repository, and fetch those that torch does not read on demand.

They belong to the commit that `hub/resolve.py` has resolved, and lie in the same folder.
"""

from __future__ import annotations

import logging
from pathlib import Path

from infinity_emb.errors import StartupError
from infinity_emb.hub.resolve import ModelFiles

logger = logging.getLogger("infinity_emb")


def list_files(files: ModelFiles) -> list[str]:
    """Return the paths of all files in the repository, or of the local files if it was not listed."""
    if files.names:
        return list(files.names)
    return [path.relative_to(files.path).as_posix() for path in sorted(files.path.rglob("*"))]


def find_local_folder(model_id: str) -> Path | None:
    """Return a folder that a model refers to, or its copy in the hub's cache; None if there is none."""
    if Path(model_id).is_dir():
        return Path(model_id)
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        config = try_to_load_from_cache(model_id, "config.json")
    except errors.HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def fetch_file(files: ModelFiles, name: str) -> Path:
    """Return the local path of a file, after downloading it if necessary. Raises StartupError."""
    path = files.path / name
    if path.is_file() or files.source != "hub":
        return path
    from huggingface_hub import errors, hf_hub_download

    logger.info("downloading %s of %s commit %s", name, files.repo_id, files.revision)
    try:
        return Path(hf_hub_download(files.repo_id, name, revision=files.revision))
    except (errors.HTTPError, OSError) as exc:  # type: ignore[attr-defined]
        raise StartupError(
            f"{name} of {files.repo_id!r} cannot be downloaded ({type(exc).__name__}: {exc}); check the"
            " network"
        ) from exc
