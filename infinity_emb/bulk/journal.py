"""Record the progress of a job, so that it can be killed at any time and continued.

Results are written to *parts*, each for the range of rows in its name, and parts are joined to shards. Every
file is written under another name, flushed to disk and renamed, so a file that exists is complete. The bad
rows of a part are written before it, so the rows of a part that exists are done.

    out.parquet.parts/manifest.json                       the input and the options
    out.parquet.parts/000000000000-000000008192.bad.jsonl  bad rows of the first part, if it has any
    out.parquet.parts/000000000000-000000008192.part       the first part
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from infinity_emb.bulk.rows import BadRow
from infinity_emb.bulk.shard_formats import ShardFormat, join_bytes
from infinity_emb.errors import StartupError
from infinity_emb.storage.files import DRAFT_SUFFIX, lock_folder, remove_folder, write_durably

_PART = re.compile(r"(\d{12,})-(\d{12,})\.part")
_BAD = ".bad.jsonl"


class Layout(NamedTuple):
    """The paths of a job's output.

    rows_per_shard: None for a single file.
    """

    output: Path
    rows_per_shard: int | None

    @property
    def parts(self) -> Path:
        """Return the folder that exists while a job is not finished."""
        if self.rows_per_shard is None:
            return self.output.with_name(f"{self.output.name}.parts")
        return self.output / "_parts"

    @property
    def bad_rows(self) -> Path:
        """Return the file of rows without a result."""
        if self.rows_per_shard is None:
            return self.output.with_name(f"{self.output.name}.bad.jsonl")
        return self.output / "_bad.jsonl"

    def shard(self, number: int, suffix: str) -> Path:
        """Return the path of a shard."""
        return self.output if self.rows_per_shard is None else self.output / f"part-{number:05d}{suffix}"

    def list_results(self) -> list[Path]:
        """Return the files of a finished job that exist."""
        shards = [self.output] if self.rows_per_shard is None else sorted(self.output.glob("part-*.*"))
        return [path for path in [*shards, self.bad_rows] if path.exists()]


class Part(NamedTuple):
    """The results of the rows [start, stop)."""

    start: int
    stop: int
    path: Path


class Journal:
    """The folder of parts of one job; one process at a time may have it open."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._folder = layout.parts
        self._lock: BinaryIO | None = None

    def check_output(self, *, overwrite: bool) -> None:
        """Raise StartupError if the output of another job exists."""
        has_begun = (self._folder / "manifest.json").exists()
        if not (has_begun or overwrite) and (existing := self._layout.list_results()):
            raise StartupError(f"{existing[0]} exists; give another output, or --overwrite to replace it")

    def open(self, manifest: Mapping[str, Any], *, overwrite: bool) -> None:
        """Start a job, or continue the one that was begun with the same manifest.

        Raises StartupError if the manifest differs or another process runs the job.
        """
        self._make_folder()
        self._acquire_lock()
        if (self._folder / "manifest.json").exists() and not overwrite:
            self._check_manifest(manifest)
        else:
            self._clear()
            write_file(self._folder / "manifest.json", lambda file: _write_json(file, manifest))
        for draft in self._folder.glob(f"*{DRAFT_SUFFIX}"):
            draft.unlink()

    def close(self) -> None:
        """Let another process open the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def is_finished(self) -> bool:
        """Return true when only the folder is left to remove."""
        return (self._folder / "finished").exists()

    def find_next_row(self, suffix: str) -> int | None:
        """Return the number of the first row that is not done, or None for a file that is complete.

        Removes what an interrupted step has left behind.
        """
        number, size = 0, self._layout.rows_per_shard
        if size is None and self._layout.output.exists():
            return None
        while size is not None and self._layout.shard(number, suffix).exists():
            number += 1
        next_row = number * (size or 0)
        for part in self._list_parts():
            if part.stop <= next_row:
                part.path.unlink()  # its shard is complete
            elif part.start == next_row:
                next_row = part.stop
        for path in self._folder.glob(f"*{_BAD}"):
            if int(path.name.partition("-")[0]) >= next_row:
                path.unlink()  # its part was not written
        return next_row

    def write_part(
        self, start: int, stop: int, bad: Sequence[BadRow], write: Callable[[BinaryIO], None]
    ) -> None:
        """Commit the results of the rows [start, stop). Raises StartupError for a full disk."""
        name = f"{start:012d}-{stop:012d}"
        if bad:
            write_file(self._folder / f"{name}{_BAD}", lambda file: _write_bad_rows(file, bad))
        write_file(self._folder / f"{name}.part", write)

    def join_shard(self, number: int, shard_format: ShardFormat) -> None:
        """Make a shard of the existing parts, and remove them."""
        path = self._layout.shard(number, shard_format.suffix)
        parts = [part.path for part in self._list_parts()]
        if not path.exists():
            with explain_failure(path):
                shard_format.write_shard(path, parts)
        for part in parts:
            part.unlink()

    def finish(self) -> int:
        """Write the file of bad rows and remove the folder; return the number of bad rows."""
        parts = sorted(self._folder.glob(f"*{_BAD}"))
        if not self.is_finished:
            if parts:
                write_file(self._layout.bad_rows, lambda file: join_bytes(file, parts))
            write_file(self._folder / "finished", lambda _: None)
        num_bad = 0
        if self._layout.bad_rows.exists():
            with self._layout.bad_rows.open("rb") as file:
                num_bad = sum(1 for _ in file)
        self.close()
        # The file `finished` is removed last, so that an interrupted removal is continued.
        for path in sorted(self._folder.iterdir(), key=lambda path: path.name == "finished"):
            if path.name != "manifest.json":
                path.unlink()
        shutil.rmtree(self._folder)
        return num_bad

    def _list_parts(self) -> list[Part]:
        found = ((_PART.fullmatch(path.name), path) for path in self._folder.iterdir())
        return sorted(Part(int(match[1]), int(match[2]), path) for match, path in found if match)

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise StartupError(f"cannot write {self._layout.output} ({exc}); give another output") from exc

    def _acquire_lock(self) -> None:
        try:
            self._lock = lock_folder(self._folder)
        except BlockingIOError:
            raise StartupError(f"another process is writing {self._layout.output}; wait for it") from None

    def _check_manifest(self, manifest: Mapping[str, Any]) -> None:
        recorded = json.loads((self._folder / "manifest.json").read_bytes())
        given = json.loads(json.dumps(manifest))
        for name in [*given, *recorded]:
            if given.get(name) != recorded.get(name):
                before, now = _shorten(recorded.get(name)), _shorten(given.get(name))
                raise StartupError(
                    f"{self._layout.output} was begun with another {name}: {before}, now {now}; give the same"
                    " to continue, or --overwrite to start again"
                )

    def _clear(self) -> None:
        for path in [*self._layout.list_results(), *self._folder.iterdir()]:
            if path.is_dir():
                remove_folder(path)
            elif path.name != "lock":
                path.unlink()


def write_file(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Create or replace a file as a whole. Raises StartupError."""
    with explain_failure(path):
        write_durably(path, write)


@contextlib.contextmanager
def explain_failure(path: Path) -> Iterator[None]:
    """Turn an OSError into a StartupError that names the path."""
    try:
        yield
    except OSError as exc:
        raise StartupError(
            f"cannot write {path} ({exc}); make room, and run the same command again to continue"
        ) from exc


def _write_json(file: BinaryIO, value: Any) -> None:
    file.write(json.dumps(value, indent=1).encode())


def _write_bad_rows(file: BinaryIO, bad: Sequence[BadRow]) -> None:
    file.writelines(json.dumps(row._asdict()).encode() + b"\n" for row in bad)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
