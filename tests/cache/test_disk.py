from __future__ import annotations

import asyncio
import logging
import resource
import sqlite3
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from infinity_emb.cache import disk
from infinity_emb.cache.disk import DiskTier
from infinity_emb.cache.stats import CacheStats
from infinity_emb.cache.vector_file import discard_file
from infinity_emb.computed import Entry
from tests.cache.answers import entry_of, key_of, same_entry

PATIENCE_S = 30.0
KEYS = [key_of(number) for number in range(100)]
ENTRIES = {key_of(number): entry_of(number) for number in range(100)}
T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE_S))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vectors.sqlite3"


@asynccontextmanager
async def opened(path: Path, stats: CacheStats | None = None) -> AsyncIterator[DiskTier]:
    tier = DiskTier(path, max_bytes=2**24, stats=stats or CacheStats())
    try:
        yield tier
    finally:
        await tier.close()


async def keep(path: Path, entries: dict[bytes, Entry] = ENTRIES, stats: CacheStats | None = None) -> None:
    async with opened(path, stats) as tier:
        tier.keep_soon(entries)


async def find(path: Path, stats: CacheStats | None = None) -> list[Entry | None]:
    async with opened(path, stats) as tier:
        return await tier.find(KEYS)


def are_all_there(found: list[Entry | None]) -> bool:
    return all(same_entry(entry, ENTRIES[key]) for key, entry in zip(KEYS, found, strict=True))


def test_what_was_kept_is_found_at_once_and_after_a_restart(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as tier:
            tier.keep_soon(ENTRIES)
            assert are_all_there(await tier.find(KEYS))
            assert await tier.find([key_of(-1)]) == [None]

    run(main())
    assert are_all_there(run(find(path)))


def test_a_write_comes_by_itself_and_is_found_by_another_process_that_starts_then(path: Path) -> None:
    async def main() -> None:
        stats = CacheStats()
        async with opened(path, stats) as tier:
            tier.keep_soon(ENTRIES)
            while not any(await find(path)):
                await asyncio.sleep(0.01)
            assert are_all_there(await tier.find(KEYS))
            assert stats.disk_bytes > 0

    run(main())


def test_a_corrupt_entry_is_dropped_counted_and_kept_anew(path: Path) -> None:
    run(keep(path))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE vectors SET value = zeroblob(40) WHERE key = ?", [KEYS[3]])
        connection.execute("UPDATE vectors SET value = x'' WHERE key = ?", [KEYS[4]])
    stats = CacheStats()
    found = run(find(path, stats))
    assert [at for at, entry in enumerate(found) if entry is None] == [3, 4]
    assert stats.num_dropped == 2
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM vectors").fetchone() == (98,)
    run(keep(path, {KEYS[3]: entry_of(3), KEYS[4]: entry_of(4)}))
    assert are_all_there(run(find(path, stats)))
    assert stats.num_dropped == 2


def damage_start(path: Path) -> None:
    path.write_bytes(b"no database at all" * 500)


def damage_tables(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xff" * len(content[8192:])
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_start, damage_tables])
def test_a_corrupt_file_is_begun_anew(path: Path, damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    run(keep(path))
    damage(path)
    stats = CacheStats()
    assert not any(run(find(path, stats)))
    assert stats.num_dropped >= 1
    assert "is begun anew" in caplog.text
    run(keep(path))
    assert are_all_there(run(find(path)))


def test_a_file_that_somebody_deletes_is_begun_anew(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as tier:
            tier.keep_soon(ENTRIES)
            while not path.exists():
                await asyncio.sleep(0.01)
            discard_file(path)
            tier.keep_soon(ENTRIES)

    run(main())
    assert are_all_there(run(find(path)))


@contextmanager
def full_disk(size_bytes: int) -> Iterator[None]:
    """No file of this process may become larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_the_writing_with_one_line_and_what_is_there_is_read(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        stats = CacheStats()
        async with opened(path, stats) as tier:
            assert are_all_there(await tier.find(KEYS))
            with full_disk(4096):
                for start in (1000, 2000):
                    tier.keep_soon({key_of(number): entry_of(1) for number in range(start, start + 10)})
                    while not stats.num_unwritten >= start // 100:
                        await asyncio.sleep(0.01)
            assert are_all_there(await tier.find(KEYS))

    run(keep(path))
    with caplog.at_level(logging.WARNING):
        run(main())
    assert [record.message for record in caplog.records if "cannot be written" in record.message] == [
        caplog.records[0].message
    ]


def test_a_folder_that_cannot_be_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    stats = CacheStats()

    async def main() -> None:
        async with opened(tmp_path / "file" / "vectors.sqlite3", stats) as tier:
            tier.keep_soon(ENTRIES)
            while stats.num_unwritten < len(ENTRIES):
                await asyncio.sleep(0.01)
            assert await tier.find(KEYS) == [None] * len(KEYS)

    run(main())
    assert "only read" in caplog.text


def test_a_file_that_another_holds_for_long_costs_no_answer(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(disk, "_WRITE_TIMEOUT_S", 0.05)
    run(keep(path))
    stats = CacheStats()
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")

        async def main() -> None:
            async with opened(path, stats) as tier:
                tier.keep_soon({key_of(-1): entry_of(1)})
                assert are_all_there(await tier.find(KEYS))

        run(main())
        holder.execute("ROLLBACK")
    assert stats.num_unwritten == 1
    assert "cannot be written" not in caplog.text
    run(keep(path, {key_of(-1): entry_of(1)}, stats))
    assert stats.num_unwritten == 1


def test_a_request_that_is_late_for_the_end_finds_nothing_and_does_not_fail(path: Path) -> None:
    stats = CacheStats()

    async def main() -> None:
        async with opened(path, stats) as tier:
            tier.keep_soon(ENTRIES)
        tier.keep_soon({key_of(-1): entry_of(1)})
        assert await tier.find(KEYS) == [None] * len(KEYS)

    run(main())
    assert stats.num_unwritten == 1


def test_more_than_may_wait_is_not_kept_and_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "MAX_WAITING_BYTES", 1000)
    stats = CacheStats()
    run(keep(path, stats=stats))
    assert stats.num_unwritten == len(ENTRIES)


def test_many_large_entries_go_in_several_transactions(path: Path) -> None:
    entries = {key_of(number): entry_of(number, 100_000) for number in range(30)}
    run(keep(path, entries))

    async def main() -> list[Entry | None]:
        async with opened(path) as tier:
            return await tier.find(list(entries))

    found = run(main())
    newest = [same_entry(entry, entries[key]) for key, entry in zip(entries, found, strict=True)]
    assert newest[-20:] == [True] * 20
