"""Find the cache folder, and write files such that no reader sees part of one.

Calibration, cached vectors, exported graphs and choices of engines each have a subfolder.
"""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

DRAFT_SUFFIX = ".draft"


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Return the folder in INFINITY_HOME, else HF_HOME, else the user's cache folder; it may not exist yet.

    Source: https://specifications.freedesktop.org/basedir-spec/latest/ for XDG_CACHE_HOME
    """
    home = environ.get("HOME") or os.path.expanduser("~")
    if home == "~":  # a user id without a name, as containers of some clusters have
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


def write_atomically(path: Path, content: bytes) -> None:
    """Create or replace a file, with its parent folders. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = name_draft(path)
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def name_draft(path: Path) -> Path:
    """Return a unique name beside `path`, to write to before renaming."""
    # Without the process id: two containers on one volume may both be number 1.
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}{DRAFT_SUFFIX}")


def write_durably(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Create or replace a file that one process writes: its content is on disk before it has its name.

    Raises OSError; a killed process leaves a file with DRAFT_SUFFIX behind.
    """
    draft = path.with_name(path.name + DRAFT_SUFFIX)
    try:
        with draft.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def write_folder_durably(path: Path, write: Callable[[Path], None]) -> None:
    """Create a folder that one process writes: its files are on disk before it has its name.

    write: create the folder at the path that is passed.
    Raises OSError; a killed process leaves a folder with DRAFT_SUFFIX behind, which the next call removes.
    """
    draft = path.with_name(path.name + DRAFT_SUFFIX)
    shutil.rmtree(draft, ignore_errors=True)
    try:
        write(draft)
        for file in draft.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        os.replace(draft, path)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def remove_folder(path: Path) -> None:
    """Remove a folder; a killed process leaves no part of it under its name. Raises OSError."""
    draft = path.with_name(path.name + DRAFT_SUFFIX)
    shutil.rmtree(draft, ignore_errors=True)
    os.replace(path, draft)
    shutil.rmtree(draft)


def lock_folder(folder: Path) -> BinaryIO:
    """Lock a folder until the returned file is closed or the process ends; not on Windows.

    Raises BlockingIOError if another process holds the lock.
    """
    lock = (folder / "lock").open("wb")
    if sys.platform != "win32":
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise
    return lock
