"""What an engine makes of a model before it can compute it: a folder in the cache, once for each revision.

Knows nothing of what is made, nor of who computes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from infinity_emb.config import EngineArgs
from infinity_emb.errors import DeviceFailed, StartupError, one_line
from infinity_emb.home import home_folder
from infinity_emb.model_files import ModelFiles

T = TypeVar("T")

logger = logging.getLogger("infinity_emb")

_DRAFT = re.compile(r".*\.[0-9a-f]{32}\.draft")
# Nothing is made for so long: who has begun such a draft was killed.
_MAX_DRAFT_AGE_S = 24 * 3600


def folder_of_engine(name: str) -> Path:
    """Where an engine keeps what it makes."""
    return home_folder(os.environ) / name


def folder_name(args: EngineArgs, files: ModelFiles, *others: object) -> str:
    """Another one for each model, revision and whatever else may make something else of it.

    others: told apart by how they print.
    """
    # With code of its own, a model may be another network than transformers' of the same type.
    key = (args.model_name_or_path, files.version, args.trust_remote_code, *others)
    name = re.sub(r"[^\w.-]+", "-", args.model_name_or_path, flags=re.ASCII)[-60:]
    return f"{name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}"


def stats_of(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """What tells whether files are still the same, of those that are there."""
    found = [(path, path.stat()) for path in paths if path.is_file()]
    return [(str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path, stat in found]


@contextlib.contextmanager
def draft_beside(folder: Path) -> Iterator[Path]:
    """An empty folder to make `folder` in. At the end it is removed, where it was not put in its place.

    Processes that make the same at once have a draft each. Those of processes that were killed go first.
    Raises OSError for one that cannot be made.
    """
    _remove_left_drafts(folder.parent)
    draft = _name_beside(folder)
    try:
        draft.mkdir(parents=True)
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _name_beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.draft")


def _remove_left_drafts(parent: Path) -> None:
    """Of whatever is made there: their names change with each version of a model or a library."""
    oldest_s = time.time() - _MAX_DRAFT_AGE_S
    with contextlib.suppress(OSError):  # no folder yet, or somebody else has removed them
        for path in parent.iterdir():
            if _DRAFT.fullmatch(path.name) and path.stat().st_mtime < oldest_s:
                shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeOnce:
    """A folder of files that are made of a model.

    model: its name, for messages.
    deed: what is done to the model, for messages: `exported to ONNX`.
    main_file: the one of the files that is opened.
    make: writes all files into an empty folder that it is handed.
    """

    model: str
    deed: str
    folder: Path
    main_file: str
    make: Callable[[Path], None]

    def path(self) -> Path:
        """Of the main file, from the cache or made now.

        Processes that start together each make a whole folder, and the first one stays.
        Raises StartupError for what cannot be made or written.
        """
        if not self._path.exists():
            logger.info("model %s is %s once; this takes seconds to minutes", self.model, self.deed)
            self._make()
        return self._path

    def opened(self, open_it: Callable[[Path], T]) -> T:
        """What `open_it` makes of the main file. One from the cache that it refuses is made again.

        open_it: raises StartupError where it refuses, and DeviceFailed where the file is not to blame. Raises
        what it raises, and what `path` does.
        """
        was_there = self._path.exists()
        try:
            return open_it(self.path())
        except DeviceFailed:
            raise
        except StartupError as exc:
            if not was_there:
                raise
            logger.warning("model %s is %s again: %s", self.model, self.deed, exc)
        self._make(in_place_of_another=True)
        return open_it(self._path)

    @property
    def _path(self) -> Path:
        return self.folder / self.main_file

    def _make(self, *, in_place_of_another: bool = False) -> None:
        """What is there stays until another one is whole."""
        try:
            with draft_beside(self.folder) as draft:
                self.make(draft)
                if in_place_of_another:
                    self._discard()
                self._put_in_place(draft)
        except StartupError:
            raise
        except OSError as exc:
            raise StartupError(
                f"model {self.model!r}, {self.deed}, cannot be written to {self.folder.parent}"
                f" ({exc}); set INFINITY_HOME to a folder that can be written and has room"
            ) from exc
        except Exception as exc:  # whatever an architecture makes the library raise
            reason = one_line(exc, 300)
            raise StartupError(
                f"model {self.model!r} cannot be {self.deed} ({type(exc).__name__}: {reason});"
                " use --engine torch"
            ) from exc

    def _put_in_place(self, draft: Path) -> None:
        try:
            os.replace(draft, self.folder)
        except OSError:  # a folder that is not empty: somebody else was first
            if self._path.exists():
                return
            self._discard()  # or somebody has deleted a part of it
            os.replace(draft, self.folder)

    def _discard(self) -> None:
        """In one step, so that nobody who starts now finds half of it."""
        away = _name_beside(self.folder)
        with contextlib.suppress(OSError):  # somebody else has discarded it, or nobody may
            os.replace(self.folder, away)
        shutil.rmtree(away, ignore_errors=True)
