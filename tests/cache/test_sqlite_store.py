"""Store values in SQLite from several connections and processes."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from infinity_emb.cache.sqlite_store import SqliteStore, delete_store
from tests.support.outputs import key_of

MEGABYTE = 2**20
# Writes numbers from an argument on until it is killed, and says so after each transaction.
WRITE_ON = """
import sys
from pathlib import Path
from infinity_emb.cache.sqlite_store import SqliteStore
from tests.support.outputs import key_of
file = SqliteStore(Path(sys.argv[1]), 2**26, 10.0)
number = int(sys.argv[2])
while True:
    file.write({key_of(at): b"%d " % at * 100 for at in range(number, number + 20)})
    number += 20
    print(number, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "vectors.sqlite3"


@pytest.fixture
def file(path: Path) -> Iterator[SqliteStore]:
    with closing(SqliteStore(path, 64 * MEGABYTE, 1.0)) as file:
        yield file


def read_keys(path: Path) -> set[bytes]:
    with closing(sqlite3.connect(path)) as connection:
        return {row[0] for row in connection.execute("SELECT key FROM vectors")}


def test_values_are_read_by_every_connection_until_they_are_deleted(file: SqliteStore, path: Path) -> None:
    values = {key_of(number): b"%d" % number for number in range(1000)}
    file.write({**values})
    with closing(SqliteStore(path, 64 * MEGABYTE, 1.0)) as other:
        assert other.read([*values, key_of(-1)]) == values
        assert read_keys(path) == values.keys()
        other.write({key_of(0): None, key_of(1): b"new"})
    assert file.read([key_of(0), key_of(1), key_of(2)]) == {key_of(1): b"new", key_of(2): b"2"}


@pytest.mark.parametrize("max_megabytes", [1, 4])
def test_file_and_log_stay_below_the_limit_and_keep_the_newest_values(path: Path, max_megabytes: int) -> None:
    max_bytes = max_megabytes * MEGABYTE
    with closing(SqliteStore(path, max_bytes, 1.0)) as file:
        largest = 0
        for start in range(0, 8000, 40):
            file.write({key_of(number): os.urandom(1500) for number in range(start, start + 40)})
            largest = max(largest, file.measure_size_bytes())
        assert largest <= max_bytes
        assert file.read([key_of(7999)])
        assert not file.read([key_of(0)])
        assert len(read_keys(path)) * 1500 > max_bytes / 3, "most of the room is used"


def test_nobody_else_may_read_the_files(file: SqliteStore, path: Path) -> None:
    file.write({key_of(0): b"value"})
    modes = {each.name: each.stat().st_mode & 0o777 for each in path.parent.iterdir()}
    assert len(modes) == 3
    assert set(modes.values()) == {0o600}


def test_a_value_over_the_limit_is_dropped(path: Path) -> None:
    with closing(SqliteStore(path, MEGABYTE, 1.0)) as file:
        file.write({key_of(0): b"0"})
        file.write({key_of(1): bytes(2 * MEGABYTE)})
        assert read_keys(path) == {key_of(0)}


def test_a_lower_limit_shrinks_the_file(path: Path) -> None:
    with closing(SqliteStore(path, 16 * MEGABYTE, 1.0)) as file:
        file.write({key_of(number): os.urandom(1500) for number in range(4000)})
    with closing(SqliteStore(path, MEGABYTE, 1.0)) as file:
        file.write({key_of(-1): b"new"})
        assert file.read([key_of(-1)]) == {key_of(-1): b"new"}
    assert path.stat().st_size <= MEGABYTE


def test_a_failed_write_changes_nothing(file: SqliteStore, path: Path) -> None:
    with pytest.raises(sqlite3.Error):
        file.write({key_of(1): b"1", key_of(2): (1, 2)})  # type: ignore[dict-item]
    assert read_keys(path) == set()
    file.write({key_of(3): b"3"})
    assert read_keys(path) == {key_of(3)}


def test_killed_writers_lose_nothing_that_was_written(path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE_ON, str(path), str(start)], stdout=subprocess.PIPE, text=True
        )
        for start in (0, 1_000_000)
    ]
    written: list[Any] = []
    for start, writer in zip((0, 1_000_000), writers, strict=True):
        with writer:
            assert writer.stdout is not None
            number = 0
            for _ in range(15):
                number = int(writer.stdout.readline())
            writer.kill()
        written += range(start, number)
    with closing(SqliteStore(path, 64 * MEGABYTE, 10.0)) as file:
        found = file.read([key_of(number) for number in written])
    assert found == {key_of(number): b"%d " % number * 100 for number in written}


def test_a_file_that_is_not_a_database_can_be_deleted(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is no database" * 1000)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        SqliteStore(path, MEGABYTE, 1.0)
    delete_store(path)
    with closing(SqliteStore(path, MEGABYTE, 1.0)):
        assert read_keys(path) == set()


def test_a_replaced_file_is_detected(file: SqliteStore, path: Path) -> None:
    assert file.is_current()
    delete_store(path)
    assert not file.is_current()
    with closing(SqliteStore(path, MEGABYTE, 1.0)):
        assert not file.is_current()
