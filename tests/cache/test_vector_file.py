from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from infinity_emb.cache.vector_file import VectorFile, discard_file
from tests.cache.answers import key_of

MEGABYTE = 2**20
# Writes numbers from an argument on until it is killed, and says so after each transaction.
WRITE_ON = """
import sys
from pathlib import Path
from infinity_emb.cache.vector_file import VectorFile
from tests.cache.answers import key_of
file = VectorFile(Path(sys.argv[1]), 2**26, 10.0)
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
def file(path: Path) -> Iterator[VectorFile]:
    with closing(VectorFile(path, 64 * MEGABYTE, 1.0)) as file:
        yield file


def keys_in(file: VectorFile) -> set[bytes]:
    return {key for keys in file.all_keys() for key in keys}


def test_values_are_read_by_any_connection_until_they_are_taken_out(file: VectorFile, path: Path) -> None:
    values = {key_of(number): b"%d" % number for number in range(1000)}
    file.write({**values})
    with closing(VectorFile(path, 64 * MEGABYTE, 1.0)) as other:
        assert other.read([*values, key_of(-1)]) == values
        assert (other.count(), keys_in(other)) == (1000, values.keys())
        other.write({key_of(0): None, key_of(1): b"new"})
    assert file.read([key_of(0), key_of(1), key_of(2)]) == {key_of(1): b"new", key_of(2): b"2"}


def test_a_write_tells_what_others_wrote_meanwhile(file: VectorFile, path: Path) -> None:
    file.write({key_of(0): b"0"})
    with closing(VectorFile(path, 64 * MEGABYTE, 1.0)) as other:
        assert list(other.all_keys()) == [[key_of(0)]]
        assert file.write({key_of(1): b"1"}) == []
        assert other.write({key_of(2): b"2"}) == [key_of(1)]
        assert other.write({key_of(3): b"3"}) == []
    assert file.write({key_of(4): b"4"}) == [key_of(2), key_of(3)]


@pytest.mark.parametrize("max_megabytes", [1, 4])
def test_file_and_log_stay_below_the_limit_and_the_newest_stay(path: Path, max_megabytes: int) -> None:
    max_bytes = max_megabytes * MEGABYTE
    with closing(VectorFile(path, max_bytes, 1.0)) as file:
        largest = 0
        for start in range(0, 8000, 40):
            file.write({key_of(number): os.urandom(1500) for number in range(start, start + 40)})
            largest = max(largest, file.size_bytes())
        assert largest <= max_bytes
        assert file.read([key_of(7999)])
        assert not file.read([key_of(0)])
        assert file.count() * 1500 > max_bytes / 3, "most of the room is used"


def test_a_value_that_does_not_fit_at_all_leaves_the_others_alone(path: Path) -> None:
    with closing(VectorFile(path, MEGABYTE, 1.0)) as file:
        file.write({key_of(0): b"0"})
        file.write({key_of(1): bytes(2 * MEGABYTE)})
        assert keys_in(file) == {key_of(0)}


def test_a_lower_limit_makes_the_file_smaller(path: Path) -> None:
    with closing(VectorFile(path, 16 * MEGABYTE, 1.0)) as file:
        file.write({key_of(number): os.urandom(1500) for number in range(4000)})
    with closing(VectorFile(path, MEGABYTE, 1.0)) as file:
        file.write({key_of(-1): b"new"})
        assert file.read([key_of(-1)]) == {key_of(-1): b"new"}
    assert path.stat().st_size <= MEGABYTE


def test_what_fails_in_the_middle_changes_nothing(file: VectorFile) -> None:
    with pytest.raises(sqlite3.Error):
        file.write({key_of(1): b"1", key_of(2): (1, 2)})  # type: ignore[dict-item]
    assert keys_in(file) == set()
    file.write({key_of(3): b"3"})
    assert keys_in(file) == {key_of(3)}


def test_two_processes_that_write_and_are_killed_lose_and_change_nothing_that_was_written(path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE_ON, str(path), str(start)], stdout=subprocess.PIPE, text=True
        )
        for start in (0, 1_000_000)
    ]
    written = []
    for start, writer in zip((0, 1_000_000), writers, strict=True):
        with writer:
            assert writer.stdout is not None
            number = 0
            for _ in range(15):
                number = int(writer.stdout.readline())
            writer.kill()
        written += range(start, number)
    with closing(VectorFile(path, 64 * MEGABYTE, 10.0)) as file:
        found = file.read([key_of(number) for number in written])
    assert found == {key_of(number): b"%d " % number * 100 for number in written}


def test_a_file_that_is_none_is_told_and_can_be_discarded(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is no database" * 1000)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        VectorFile(path, MEGABYTE, 1.0)
    discard_file(path)
    with closing(VectorFile(path, MEGABYTE, 1.0)) as file:
        assert file.count() == 0


def test_a_file_that_was_replaced_is_noticed(file: VectorFile, path: Path) -> None:
    assert file.is_in_place()
    discard_file(path)
    assert not file.is_in_place()
    with closing(VectorFile(path, MEGABYTE, 1.0)):
        assert not file.is_in_place()
