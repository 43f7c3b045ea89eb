"""Keep files and batches in a folder: contents as files, everything else in one SQLite database.

A batch and its progress are one row, so a process that is killed finds either all or nothing of a step.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from infinity_emb.errors import BadInput, StartupError
from infinity_emb.storage.files import lock_folder

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE, owner TEXT, filename TEXT, purpose TEXT, num_bytes INTEGER,
    created_at INTEGER, expires_at INTEGER
);
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE, owner TEXT, is_finished INTEGER, fields TEXT,
    num_lines INTEGER, output_file_id TEXT, output_bytes INTEGER, error_file_id TEXT, error_bytes INTEGER
);
CREATE INDEX IF NOT EXISTS files_by_owner ON files (owner, number);
CREATE INDEX IF NOT EXISTS batches_by_owner ON batches (owner, number);
"""
_SAVE_BATCH = """
INSERT INTO batches (id, owner, is_finished, fields, num_lines, output_file_id, output_bytes, error_file_id,
    error_bytes)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET is_finished = excluded.is_finished, fields = excluded.fields,
    num_lines = excluded.num_lines, output_bytes = excluded.output_bytes, error_bytes = excluded.error_bytes
"""
# The rows after the one with an id, newest first; all rows if there is none.
_FOLLOWS = "number < coalesce((SELECT number FROM {table} WHERE id = ? AND owner = ?), 1 << 62)"
MAX_FILES = 10_000  # of one owner
_FILES_PER_BATCH = 2  # its results, counted from its start


class StorageFull(Exception):
    """The files would exceed the limit of all files."""


class FileRecord(NamedTuple):
    """An uploaded file or a result. Its id is random, and names the file with its content."""

    id: str
    owner: str
    filename: str
    purpose: str
    num_bytes: int
    created_at: int
    expires_at: int


@dataclass(slots=True, kw_only=True)
class BatchRecord:
    """A batch and its progress.

    fields: as clients see them.
    num_lines: how many lines of the input are done; their results are the first `output_bytes` and
        `error_bytes` of the two files.
    """

    id: str
    owner: str
    fields: dict[str, Any]
    num_lines: int = 0
    output_file_id: str
    output_bytes: int = 0
    error_file_id: str
    error_bytes: int = 0

    @property
    def is_finished(self) -> bool:
        """Return true in a final state."""
        return self.fields["status"] in ("completed", "failed", "expired", "cancelled")


class BatchStore:
    """The folder; may be used from any thread, by one process at a time.

    Raises StartupError if it cannot be written or another process has it open.
    """

    def __init__(self, folder: Path) -> None:
        self._contents = folder / "files"
        self._mutex = threading.Lock()
        self._reserved: dict[str, int] = {}  # id → bytes that are being written
        try:
            self._contents.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _lock(folder)
            self._connection = sqlite3.connect(
                folder / "batches.sqlite3", isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode = WAL").fetchall()
            self._connection.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as exc:
            raise StartupError(
                f"cannot use --batch-dir {folder} ({exc}); give a folder that can be written"
            ) from exc

    def close(self) -> None:
        """Close the database, and let another process open the folder."""
        with self._mutex:
            self._connection.close()
        self._lock.close()

    def content_path(self, file_id: str) -> Path:
        """Return the path of a file's content; the id must come from this server."""
        return self._contents / file_id

    def check_num_files(self, owner: str) -> None:
        """Raise BadInput if this owner may not have another file."""
        with self._transaction() as run:
            _check_num_files(run, owner, 1)

    def add_file(self, record: FileRecord) -> None:
        """Add a file whose content exists, and release its bytes. Raises BadInput if there are too many."""
        with self._transaction() as run:
            _check_num_files(run, record.owner, 1)
            _insert_file(run, record)
            self.release(record.id)

    def find_file(self, file_id: str, owner: str) -> FileRecord | None:
        """Return a file of this owner."""
        columns = ", ".join(FileRecord._fields)
        with self._transaction() as run:
            row = run.execute(
                f"SELECT {columns} FROM files WHERE id = ? AND owner = ?", (file_id, owner)
            ).fetchone()
        return FileRecord(*row) if row else None

    def list_files(self, owner: str, purpose: str, after: str, limit: int) -> list[FileRecord]:
        """Return files of this owner, newest first: the first ones, or those after one of them."""
        columns = ", ".join(FileRecord._fields)
        condition = f"owner = ? AND ? IN (purpose, '') AND {_FOLLOWS.format(table='files')}"
        with self._transaction() as run:
            rows = run.execute(
                f"SELECT {columns} FROM files WHERE {condition} ORDER BY number DESC LIMIT ?",
                (owner, purpose, after, owner, limit),
            ).fetchall()
        return [FileRecord(*row) for row in rows]

    def remove_file(self, file_id: str) -> None:
        """Remove a file and its content."""
        with self._transaction() as run:
            run.execute("DELETE FROM files WHERE id = ?", (file_id,))
        self.content_path(file_id).unlink(missing_ok=True)

    def list_expired_files(self, now: int) -> list[str]:
        """Return the ids of expired files."""
        with self._transaction() as run:
            return [row[0] for row in run.execute("SELECT id FROM files WHERE expires_at <= ?", (now,))]

    def reserve(self, record_id: str, num_bytes: int, max_bytes: int) -> None:
        """Count bytes that a file or batch is about to write, until they are released.

        Raises StorageFull if all contents and reserved bytes would exceed `max_bytes`.
        """
        with self._transaction() as run:
            num_held = _count_bytes(run) + sum(list(self._reserved.values()))
            if num_held + num_bytes > max_bytes:
                raise StorageFull(
                    f"the files on this server have {num_held} bytes, and with {num_bytes} more they would"
                    f" exceed the limit of {max_bytes}"
                )
            self._reserved[record_id] = num_bytes

    def release(self, record_id: str) -> None:
        """Release what was reserved, if anything; does not wait for other threads."""
        self._reserved.pop(record_id, None)

    def save_batch(self, batch: BatchRecord, results: Sequence[FileRecord] = ()) -> None:
        """Add or replace a batch; `results` are files that become visible in the same step."""
        with self._transaction() as run:
            run.execute(_SAVE_BATCH, _list_values(batch))
            for record in results:
                _insert_file(run, record)

    def find_batch(self, batch_id: str, owner: str) -> BatchRecord | None:
        """Return a batch of this owner."""
        return next(iter(self._select_batches("id = ? AND owner = ?", (batch_id, owner))), None)

    def list_batches(self, owner: str, after: str, limit: int) -> list[BatchRecord]:
        """Return batches of this owner, newest first: the first ones, or those after one of them."""
        condition = f"owner = ? AND {_FOLLOWS.format(table='batches')} ORDER BY number DESC LIMIT ?"
        return self._select_batches(condition, (owner, after, owner, limit))

    def list_unfinished(self) -> list[BatchRecord]:
        """Return the batches of all owners that are not finished, oldest first."""
        return self._select_batches("NOT is_finished ORDER BY number", ())

    def add_batch(self, batch: BatchRecord, *, max_unfinished: int, max_batches: int) -> bool:
        """Add a batch unless its owner has too many unfinished ones; remove the oldest ones beyond a number.

        Returns true if it was added. Raises BadInput if its results would be too many files.
        """
        with self._transaction() as run:
            condition = "FROM batches WHERE owner = ? AND"
            counted = run.execute(f"SELECT count(*) {condition} NOT is_finished", (batch.owner,))
            if counted.fetchone()[0] >= max_unfinished:
                return False
            _check_num_files(run, batch.owner, _FILES_PER_BATCH)
            run.execute(_SAVE_BATCH, _list_values(batch))
            run.execute(
                f"DELETE {condition} is_finished AND number <="
                f" (SELECT number {condition} 1 ORDER BY number DESC LIMIT 1 OFFSET ?)",
                (batch.owner, batch.owner, max_batches),
            )
        return True

    def remove_finished_batches(self, created_before: int) -> None:
        """Remove finished batches that were created before a time."""
        with self._transaction() as run:
            run.execute(
                "DELETE FROM batches WHERE is_finished AND json_extract(fields, '$.created_at') < ?",
                (created_before,),
            )

    def _select_batches(self, condition: str, values: Sequence[object]) -> list[BatchRecord]:
        columns = "id, owner, fields, num_lines, output_file_id, output_bytes, error_file_id, error_bytes"
        with self._transaction() as run:
            rows = run.execute(f"SELECT {columns} FROM batches WHERE {condition}", values).fetchall()
        names = [name.strip() for name in columns.split(",")]
        return [
            BatchRecord(**{**dict(zip(names, row, strict=True)), "fields": json.loads(row[2])})
            for row in rows
        ]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._mutex, self._connection:  # which commits, or rolls back after an exception
            self._connection.execute("BEGIN")
            yield self._connection


def _list_values(batch: BatchRecord) -> tuple[object, ...]:
    return (
        *(batch.id, batch.owner, batch.is_finished, json.dumps(batch.fields), batch.num_lines),
        *(batch.output_file_id, batch.output_bytes, batch.error_file_id, batch.error_bytes),
    )


def _check_num_files(connection: sqlite3.Connection, owner: str, num_more: int) -> None:
    (num_files,) = connection.execute(
        "SELECT (SELECT count(*) FROM files WHERE owner = ?)"
        " + ? * (SELECT count(*) FROM batches WHERE owner = ? AND NOT is_finished)",
        (owner, _FILES_PER_BATCH, owner),
    ).fetchone()
    if num_files + num_more > MAX_FILES:
        raise BadInput(
            f"there are {num_files} files, counting {_FILES_PER_BATCH} for each unfinished batch, and at most"
            f" {MAX_FILES} are allowed; delete some"
        )


def _count_bytes(connection: sqlite3.Connection) -> int:
    """Return the size of all contents, those of unfinished batches included."""
    files = connection.execute("SELECT coalesce(sum(num_bytes), 0) FROM files").fetchone()[0]
    results = connection.execute(
        "SELECT coalesce(sum(output_bytes + error_bytes), 0) FROM batches WHERE NOT is_finished"
    ).fetchone()[0]
    return int(files) + int(results)


def _insert_file(connection: sqlite3.Connection, record: FileRecord) -> None:
    marks = ", ".join("?" * len(record))
    connection.execute(f"INSERT INTO files ({', '.join(record._fields)}) VALUES ({marks})", record)


def _lock(folder: Path) -> BinaryIO:
    try:
        return lock_folder(folder)
    except BlockingIOError:
        raise StartupError(
            f"another server uses --batch-dir {folder}; give each server its own folder"
        ) from None
