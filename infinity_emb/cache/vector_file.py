"""Packed answers in one SQLite file, which any number of processes read and write at once.

SQLite rather than lmdb or diskcache: it comes with Python, its write-ahead log survives a crash at any
moment, its readers never wait for a writer, and what is deleted makes room for what comes. One object belongs
to one thread. Knows nothing of event loops or of what the bytes mean.
Source: https://www.sqlite.org/wal.html
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_PAGE_BYTES = 8192  # five vectors of 384 numbers, or two of 768
_MAX_KEYS_PER_LOOK = 256
_MAX_ROWS_PER_STATEMENT = 128
_MAX_LOG_PAGES = 1000
_SUFFIXES = ("", "-wal", "-shm")
# `id` counts upwards, so the lowest is the one that was written first.
_SCHEMA = "CREATE TABLE IF NOT EXISTS vectors (id INTEGER PRIMARY KEY, key BLOB UNIQUE, value BLOB)"


class VectorFile:
    """A connection to the file, which is made where there is none."""

    def __init__(self, path: Path, max_bytes: int, busy_timeout_s: float) -> None:
        """Raises sqlite3.Error, and OSError where there can be no such folder.

        max_bytes: of the file and its log together. What was written first leaves first.
        busy_timeout_s: how long to wait for another process that writes.
        """
        self._path = path
        # The log holds what was written since it was last emptied, and one transaction more.
        self._max_log_bytes = min(max_bytes // 4, 2 * _MAX_LOG_PAGES * _PAGE_BYTES)
        self._max_bytes = max_bytes - self._max_log_bytes
        self._num_rows_to_free = max(16, min(1024, max_bytes // 2**21))  # many at once fill the log
        self._last_id = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None)
        try:
            self._prepare()
        except sqlite3.Error:
            self._connection.close()
            raise
        self._inode = os.stat(path).st_ino

    @property
    def max_write_bytes(self) -> int:
        """What may be written at once, so that the log stays small."""
        return self._max_log_bytes // 4

    def _prepare(self) -> None:
        run = self._connection.execute
        if not run("SELECT count(*) FROM sqlite_master WHERE name = 'vectors'").fetchone()[0]:
            # In this order: a file that has a table, or a log, keeps the size of its pages.
            for pragma in (f"page_size = {_PAGE_BYTES}", "auto_vacuum = INCREMENTAL", "journal_mode = WAL"):
                run(f"PRAGMA {pragma}").fetchall()
            run(_SCHEMA)
        for pragma in (
            "synchronous = NORMAL",  # a crash of the machine may cost the last writes, never the file
            f"wal_autocheckpoint = {self._max_log_bytes // _PAGE_BYTES // 4}",
            f"journal_size_limit = {self._max_log_bytes // 2}",
        ):
            run(f"PRAGMA {pragma}").fetchall()

    def read(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of those that are there. Raises sqlite3.Error."""
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), _MAX_KEYS_PER_LOOK):
            part = keys[start : start + _MAX_KEYS_PER_LOOK]
            places = ",".join("?" * len(part))
            found.update(
                self._connection.execute(f"SELECT key, value FROM vectors WHERE key IN ({places})", part)
            )
        return found

    def write(self, values: Mapping[bytes, bytes | None]) -> list[bytes]:
        """Put values under keys, in one transaction; None takes out. What does not fit at all is left out.

        Returns the keys that other processes have put there since this was last asked.
        Raises sqlite3.Error, and then nothing has changed.
        """
        kept = [(key, value) for key, value in values.items() if value is not None]
        taken_out = [(key,) for key, value in values.items() if value is None]
        with self._transaction():
            others = self._new_keys()
            self._connection.executemany("DELETE FROM vectors WHERE key = ?", taken_out)
            if self._make_room(sum(len(value) + 100 for _, value in kept)):
                self._put(kept)
            self._last_id = self._max_id()
        if self._value("PRAGMA page_count") * _PAGE_BYTES > self._max_bytes:  # the limit was a higher one
            self._connection.executescript("PRAGMA incremental_vacuum")  # `execute` would free one page
        return others

    def count(self) -> int:
        """How many keys there are. Raises sqlite3.Error."""
        return self._value("SELECT count(*) FROM vectors")

    def all_keys(self) -> Iterator[list[bytes]]:
        """Every key, a few thousand at a time; reads no values. Raises sqlite3.Error."""
        self._last_id = self._max_id()
        cursor = self._connection.execute("SELECT key FROM vectors")
        while rows := cursor.fetchmany(4096):
            yield [row[0] for row in rows]

    def size_bytes(self) -> int:
        """Of the file and its log."""
        return sum(_size_of(path) for path in _paths_of(self._path))

    def is_in_place(self) -> bool:
        """Whether this is the file that others would open now."""
        try:
            return os.stat(self._path).st_ino == self._inode
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """The last process that does empties the log."""
        with contextlib.suppress(sqlite3.Error):  # of a damaged file
            self._connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # a full disk has ended it already
                self._connection.execute("ROLLBACK")
            raise

    def _make_room(self, num_bytes: int) -> bool:
        """Let the oldest leave until there is; whether there is."""
        if num_bytes > self._max_bytes:
            return False
        while self._used_bytes() + num_bytes > self._max_bytes:
            freed = self._connection.execute(
                "DELETE FROM vectors WHERE id IN (SELECT id FROM vectors ORDER BY id LIMIT ?)",
                [self._num_rows_to_free],
            )
            if not freed.rowcount:
                return False
        return True

    def _put(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Many by one statement: other threads of Python run while SQLite is at work, not between."""
        for start in range(0, len(rows), _MAX_ROWS_PER_STATEMENT):
            part = rows[start : start + _MAX_ROWS_PER_STATEMENT]
            places = ",".join(["(?, ?)"] * len(part))
            values = list(itertools.chain.from_iterable(part))
            self._connection.execute(f"REPLACE INTO vectors (key, value) VALUES {places}", values)

    def _new_keys(self) -> list[bytes]:
        """Of rows that other processes wrote after those that are known."""
        query = "SELECT key FROM vectors WHERE id > ?"
        return [row[0] for row in self._connection.execute(query, [self._last_id])]

    def _max_id(self) -> int:
        return self._value("SELECT coalesce(max(id), 0) FROM vectors")

    def _used_bytes(self) -> int:
        return (self._value("PRAGMA page_count") - self._value("PRAGMA freelist_count")) * _PAGE_BYTES

    def _value(self, query: str) -> int:
        value: int = self._connection.execute(query).fetchone()[0]
        return value


def discard_file(path: Path) -> None:
    """Delete a file that cannot be read, with its log; who has it open keeps what was deleted."""
    for each in _paths_of(path):
        with contextlib.suppress(OSError):
            each.unlink()


def _paths_of(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in _SUFFIXES]


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
