"""Files of a model's repository that torch does not read: what there are, and one of them fetched on demand.

They are of the commit that `model_files.py` has resolved, in the same folder. Knows nothing of what the files
mean; engines with formats of their own call it.
"""

from __future__ import annotations

import logging
from pathlib import Path

from infinity_emb.errors import StartupError
from infinity_emb.model_files import ModelFiles

logger = logging.getLogger("infinity_emb")


def list_files(files: ModelFiles) -> list[str]:
    """Paths of all files of the repository, separated by "/"; where the hub has not told, of those here."""
    if files.names:
        return list(files.names)
    return [path.relative_to(files.path).as_posix() for path in sorted(files.path.rglob("*"))]


def fetch_file(files: ModelFiles, name: str) -> Path:
    """One of the files on this machine. Raises StartupError where it cannot be got."""
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
