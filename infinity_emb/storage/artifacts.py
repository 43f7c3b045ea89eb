"""Cache the folders that an engine converts a model into, one for each revision."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from infinity_emb.errors import DeviceFailed, StartupError, one_line
from infinity_emb.storage.files import cache_dir, name_draft
from infinity_emb.storage.load_progress import report_stage

T = TypeVar("T")

logger = logging.getLogger("infinity_emb")

_DRAFT = re.compile(r".*\.[0-9a-f]{32}\.draft")
# No conversion takes that long: the process that began an older draft was killed.
_MAX_DRAFT_AGE_S = 24 * 3600


def artifact_dir(engine: str) -> Path:
    """Return the folder in which an engine keeps its artifacts."""
    return cache_dir(os.environ) / engine


def get_file_stats(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Return path, size and modification time of each file that exists, to detect changes."""
    found = [(path, path.stat()) for path in paths if path.is_file()]
    return [(str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path, stat in found]


@contextlib.contextmanager
def reuse_or_fill(folder: Path) -> Iterator[Path]:
    """Yield the folder if it exists, else a draft that takes its place at the end.

    If several processes fill it, the first one wins. Raises OSError if a draft cannot be created.
    """
    if folder.exists():
        yield folder
        return
    with _draft_beside(folder) as draft:
        yield draft
        with contextlib.suppress(OSError):  # another process was first
            os.replace(draft, folder)


@contextlib.contextmanager
def _draft_beside(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, and remove it at the end if it was not moved.

    Each process has a draft with another name. Drafts of killed processes are removed first.
    Raises OSError if it cannot be created.
    """
    _remove_abandoned_drafts(folder.parent)
    draft = name_draft(folder)
    try:
        draft.mkdir(parents=True)
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _remove_abandoned_drafts(parent: Path) -> None:
    """Remove old drafts of any folder: names change with each version of a model or a library."""
    oldest_s = time.time() - _MAX_DRAFT_AGE_S
    with contextlib.suppress(OSError):  # no folder yet, or another process has removed them
        for path in parent.iterdir():
            if _DRAFT.fullmatch(path.name) and path.stat().st_mtime < oldest_s:
                shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedArtifact:
    """A folder of files that are generated from a model.

    action: how it is made, for messages: `exporting org/model to ONNX`.
    main_file: the file that is opened.
    make: write all files into the empty folder that is passed.
    """

    action: str
    folder: Path
    main_file: str
    make: Callable[[Path], None]

    @property
    def path(self) -> Path:
        """The main file, whether it exists or not."""
        return self.folder / self.main_file

    def ensure(self) -> Path:
        """Return the path of the main file; make it first if it does not exist.

        Processes that start together each make a complete folder, and the first one wins.
        Raises StartupError if it cannot be made or written.
        """
        if not self.path.exists():
            logger.info("%s (one-time, may take minutes)", self.action)
            self._make()
        return self.path

    def open_or_rebuild(self, open_it: Callable[[Path], T]) -> T:
        """Return what `open_it` returns for the main file; a cached file that it refuses is made again.

        open_it: raises StartupError to refuse a file, DeviceFailed if the file is not to blame.
        Raises what `open_it` and `ensure` raise.
        """
        was_cached = self.path.exists()
        try:
            return open_it(self.ensure())
        except DeviceFailed:
            raise
        except StartupError as exc:
            if not was_cached:
                raise
            logger.warning("%s again, because the cached file was refused: %s", self.action, exc)
        self._make(replace=True)
        return open_it(self.path)

    def _make(self, *, replace: bool = False) -> None:
        """Make the folder; an old one is kept until the new one is complete."""
        report_stage("converting")
        try:
            with _draft_beside(self.folder) as draft:
                self.make(draft)
                if replace:
                    self._discard()
                self._move_into_place(draft)
        except StartupError:
            raise
        except OSError as exc:
            raise StartupError(
                f"{self.action} failed: cannot write to {self.folder.parent} ({exc}); set INFINITY_HOME to a"
                " writable folder with enough space"
            ) from exc
        except Exception as exc:  # depending on the architecture, the library may raise anything
            reason = one_line(exc, 300)
            raise StartupError(
                f"{self.action} failed ({type(exc).__name__}: {reason}); use --engine torch"
            ) from exc

    def _move_into_place(self, draft: Path) -> None:
        try:
            os.replace(draft, self.folder)
        except OSError:  # the folder is not empty: another process was first, or the main file was deleted
            if self.path.exists():
                return
            self._discard()
            os.replace(draft, self.folder)

    def _discard(self) -> None:
        """Remove the folder in one step, so that no other process finds half of it."""
        discarded = name_draft(self.folder)
        with contextlib.suppress(OSError):  # another process has discarded it, or it is read-only
            os.replace(self.folder, discarded)
        shutil.rmtree(discarded, ignore_errors=True)
