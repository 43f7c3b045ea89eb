"""Store serialized outputs in one SQLite file, which several processes may read and write.

SQLite rather than lmdb or diskcache: it comes with Python, its write-ahead log survives a crash at any
moment, readers never wait for a writer, and deleted entries free space in the file.
Source: https://www.sqlite.org/wal.html
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_PAGE_BYTES = 8192  # holds five vectors of 384 dimensions, or two of 768
_MAX_KEYS_PER_SELECT = 256
_MAX_ROWS_PER_STATEMENT = 128
_MAX_LOG_PAGES = 1000
_SUFFIXES = ("", "-wal", "-shm")
# `id` increases, so the lowest one was written first.
_SCHEMA = "CREATE TABLE IF NOT EXISTS vectors (id INTEGER PRIMARY KEY, key BLOB UNIQUE, value BLOB)"


class SqliteStore:
    """A connection to the file, for one thread; the file is created if it does not exist."""

    def __init__(self, path: Path, max_bytes: int, busy_timeout_s: float) -> None:
        """Open the file. Raises sqlite3.Error, and OSError if the folder cannot be created.

        max_bytes: limit of the file and its log together; the oldest entries are evicted first.
        busy_timeout_s: how long to wait for a process that is writing.
        """
        self._path = path
        # The log holds what was written since it was last truncated, plus one transaction.
        self._max_log_bytes = min(max_bytes // 4, 2 * _MAX_LOG_PAGES * _PAGE_BYTES)
        self._max_bytes = max_bytes - self._max_log_bytes
        self._num_rows_to_evict = max(16, min(1024, max_bytes // 2**21))  # many at once fill the log
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # sqlite3 reports what is wrong
            os.close(os.open(path, os.O_CREAT, 0o600))  # for this user only; the log gets the same mode
        self._connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None)
        try:
            self._prepare()
        except sqlite3.Error:
            self._connection.close()
            raise
        self._inode = os.stat(path).st_ino

    @property
    def max_write_bytes(self) -> int:
        """Return how much to write per transaction, so that the log stays small."""
        return self._max_log_bytes // 4

    def _prepare(self) -> None:
        run = self._connection.execute
        if not run("SELECT count(*) FROM sqlite_master WHERE name = 'vectors'").fetchone()[0]:
            # Set before the table and the log exist, as the page size cannot change afterwards.
            for pragma in (f"page_size = {_PAGE_BYTES}", "auto_vacuum = INCREMENTAL", "journal_mode = WAL"):
                run(f"PRAGMA {pragma}").fetchall()
            run(_SCHEMA)
        for pragma in (
            "synchronous = NORMAL",  # a crash of the machine may lose the last writes, never the file
            f"wal_autocheckpoint = {self._max_log_bytes // _PAGE_BYTES // 4}",
            f"journal_size_limit = {self._max_log_bytes // 2}",
        ):
            run(f"PRAGMA {pragma}").fetchall()

    def read(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the values that are stored. Raises sqlite3.Error."""
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), _MAX_KEYS_PER_SELECT):
            part = keys[start : start + _MAX_KEYS_PER_SELECT]
            placeholders = ",".join("?" * len(part))
            found.update(
                self._connection.execute(
                    f"SELECT key, value FROM vectors WHERE key IN ({placeholders})", part
                )
            )
        return found

    def write(self, values: Mapping[bytes, bytes | None]) -> None:
        """Store values in one transaction; None deletes. Values over the limit are dropped.

        Raises sqlite3.Error, and then nothing has changed.
        """
        stored = [(key, value) for key, value in values.items() if value is not None]
        deleted = [(key,) for key, value in values.items() if value is None]
        with self._transaction():
            self._connection.executemany("DELETE FROM vectors WHERE key = ?", deleted)
            if self._make_room(sum(len(value) + 100 for _, value in stored)):
                self._put(stored)
        if self._select("PRAGMA page_count") * _PAGE_BYTES > self._max_bytes:  # the limit was lowered
            self._connection.executescript("PRAGMA incremental_vacuum")  # `execute` would free one page

    def measure_size_bytes(self) -> int:
        """Return the size of the file and its log."""
        return sum(_get_size_bytes(path) for path in _list_paths(self._path))

    def is_current(self) -> bool:
        """Return false when the file was deleted or replaced."""
        try:
            return os.stat(self._path).st_ino == self._inode
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close the connection; the last process to do so truncates the log."""
        with contextlib.suppress(sqlite3.Error):  # of a damaged file
            self._connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # a full disk has rolled it back already
                self._connection.execute("ROLLBACK")
            raise

    def _make_room(self, num_bytes: int) -> bool:
        """Evict the oldest entries until there is room; return false if there cannot be enough."""
        if num_bytes > self._max_bytes:
            return False
        while self._used_bytes() + num_bytes > self._max_bytes:
            freed = self._connection.execute(
                "DELETE FROM vectors WHERE id IN (SELECT id FROM vectors ORDER BY id LIMIT ?)",
                [self._num_rows_to_evict],
            )
            if not freed.rowcount:
                return False
        return True

    def _put(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Insert many rows per statement: SQLite releases the GIL during a statement, not between them."""
        for start in range(0, len(rows), _MAX_ROWS_PER_STATEMENT):
            part = rows[start : start + _MAX_ROWS_PER_STATEMENT]
            placeholders = ",".join(["(?, ?)"] * len(part))
            values = list(itertools.chain.from_iterable(part))
            self._connection.execute(f"REPLACE INTO vectors (key, value) VALUES {placeholders}", values)

    def _used_bytes(self) -> int:
        return (self._select("PRAGMA page_count") - self._select("PRAGMA freelist_count")) * _PAGE_BYTES

    def _select(self, query: str) -> int:
        value: int = self._connection.execute(query).fetchone()[0]
        return value


def delete_store(path: Path) -> None:
    """Delete a corrupt file and its log; processes that have it open keep using the deleted file."""
    for file in _list_paths(path):
        with contextlib.suppress(OSError):
            file.unlink()


def _list_paths(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in _SUFFIXES]


def _get_size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
