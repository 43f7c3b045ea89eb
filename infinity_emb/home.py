"""Where files lie that are kept from one start to the next, and how one of them is put in place.

Calibration, cached vectors, exported graphs and choices of engines have a folder each in there. Knows nothing
of what the files hold.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path


def home_folder(environ: Mapping[str, str]) -> Path:
    """In INFINITY_HOME, else HF_HOME, else the user's cache folder; not made by asking.

    Source: https://specifications.freedesktop.org/basedir-spec/latest/ for XDG_CACHE_HOME
    """
    home = environ.get("HOME") or os.path.expanduser("~")
    if home == "~":  # a user id without a name, as some clusters give to containers
        home = os.sep
    candidates = (
        environ.get("INFINITY_HOME"),
        environ.get("HF_HOME"),
        environ.get("XDG_CACHE_HOME"),
        os.path.join(home, ".cache"),
    )
    base = next(path for path in candidates if path)
    if base == "~" or base.startswith("~/"):  # expanded as huggingface_hub does: no shell sees an env file
        base = home + base[1:]
    return Path(os.path.abspath(base), "infinity_emb")


def write_whole(path: Path, content: bytes) -> None:
    """Put a whole file in place of another one, or of none, with its folders. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the process id: two containers on one volume may both be number 1.
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.draft")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
