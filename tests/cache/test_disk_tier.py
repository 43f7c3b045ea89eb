"""Store outputs on disk, and go on when the disk fails."""

from __future__ import annotations

import asyncio
import logging
import resource
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from infinity_emb.cache import disk_tier as disk
from infinity_emb.cache.disk_tier import DiskTier
from infinity_emb.cache.sqlite_store import delete_store
from infinity_emb.cache.stats import CacheStats
from infinity_emb.items import ItemOutput
from tests.support.event_loop import run
from tests.support.outputs import entry_of, key_of, same_entry

KEYS = [key_of(number) for number in range(100)]
ENTRIES = {key_of(number): entry_of(number) for number in range(100)}


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


async def keep(
    path: Path, entries: dict[bytes, ItemOutput] = ENTRIES, stats: CacheStats | None = None
) -> None:
    async with opened(path, stats) as tier:
        tier.write_later(entries)


async def find(path: Path, stats: CacheStats | None = None) -> dict[bytes, ItemOutput]:
    async with opened(path, stats) as tier:
        return await tier.find(KEYS)


def are_all_found(found: Mapping[bytes, ItemOutput]) -> bool:
    return all(same_entry(found.get(key), ENTRIES[key]) for key in KEYS)


def test_outputs_are_found_at_once_and_after_a_restart(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as tier:
            tier.write_later(ENTRIES)
            assert are_all_found(await tier.find(KEYS))
            assert await tier.find([key_of(-1)]) == {}

    run(main())
    assert are_all_found(run(find(path)))


def test_outputs_are_written_soon_and_found_by_another_process(path: Path) -> None:
    async def main() -> None:
        stats = CacheStats()
        async with opened(path, stats) as tier:
            tier.write_later(ENTRIES)
            while not await find(path):
                await asyncio.sleep(0.01)
            assert are_all_found(await tier.find(KEYS))
            assert stats.disk_bytes > 0

    run(main())


def test_a_corrupt_entry_is_dropped_counted_and_replaced(path: Path) -> None:
    run(keep(path))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE vectors SET value = zeroblob(40) WHERE key = ?", [KEYS[3]])
        connection.execute("UPDATE vectors SET value = x'' WHERE key = ?", [KEYS[4]])
    stats = CacheStats()
    found = run(find(path, stats))
    assert [index for index, key in enumerate(KEYS) if key not in found] == [3, 4]
    assert stats.num_dropped == 2
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM vectors").fetchone() == (98,)
    run(keep(path, {KEYS[3]: entry_of(3), KEYS[4]: entry_of(4)}))
    assert are_all_found(run(find(path, stats)))
    assert stats.num_dropped == 2


def damage_start(path: Path) -> None:
    path.write_bytes(b"no database at all" * 500)


def damage_tables(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xff" * len(content[8192:])
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_start, damage_tables])
def test_a_corrupt_file_is_recreated(path: Path, damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    run(keep(path))
    damage(path)
    stats = CacheStats()
    assert not run(find(path, stats))
    assert stats.num_dropped >= 1
    assert "is corrupt" in caplog.text
    run(keep(path))
    assert are_all_found(run(find(path)))


def test_a_deleted_file_is_recreated(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as tier:
            tier.write_later(ENTRIES)
            while not path.exists():
                await asyncio.sleep(0.01)
            delete_store(path)
            tier.write_later(ENTRIES)

    run(main())
    assert are_all_found(run(find(path)))


@contextmanager
def full_disk(size_bytes: int) -> Iterator[None]:
    """No file of this process may become larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_logged_once_and_the_file_is_still_read(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        stats = CacheStats()
        async with opened(path, stats) as tier:
            assert are_all_found(await tier.find(KEYS))
            with full_disk(4096):
                for start in (1000, 2000):
                    tier.write_later({key_of(number): entry_of(1) for number in range(start, start + 10)})
                    while not stats.num_unwritten >= start // 100:
                        await asyncio.sleep(0.01)
            assert are_all_found(await tier.find(KEYS))

    run(keep(path))
    with caplog.at_level(logging.WARNING):
        run(main())
    assert [record.message for record in caplog.records if "cannot write" in record.message] == [
        caplog.records[0].message
    ]


def test_an_impossible_folder_is_not_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    stats = CacheStats()

    async def main() -> None:
        async with opened(tmp_path / "file" / "vectors.sqlite3", stats) as tier:
            tier.write_later(ENTRIES)
            while stats.num_unwritten < len(ENTRIES):
                await asyncio.sleep(0.01)
            assert await tier.find(KEYS) == {}

    run(main())
    assert "read-only" in caplog.text


def test_a_locked_file_does_not_fail_a_request(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(disk, "_WRITE_TIMEOUT_S", 0.05)
    run(keep(path))
    stats = CacheStats()
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")

        async def main() -> None:
            async with opened(path, stats) as tier:
                tier.write_later({key_of(-1): entry_of(1)})
                assert are_all_found(await tier.find(KEYS))

        run(main())
        holder.execute("ROLLBACK")
    assert stats.num_unwritten == 1
    assert "cannot write" not in caplog.text
    run(keep(path, {key_of(-1): entry_of(1)}, stats))
    assert stats.num_unwritten == 1


def test_a_closed_tier_finds_nothing_and_does_not_fail(path: Path) -> None:
    stats = CacheStats()

    async def main() -> None:
        async with opened(path, stats) as tier:
            tier.write_later(ENTRIES)
        tier.write_later({key_of(-1): entry_of(1)})
        assert await tier.find(KEYS) == {}

    run(main())
    assert stats.num_unwritten == 1


def test_outputs_over_the_limit_of_waiting_ones_are_counted_and_not_kept(path: Path) -> None:
    stats = CacheStats()

    async def main() -> None:
        tier = DiskTier(path, max_bytes=2**24, stats=stats, max_waiting_bytes=1000)
        tier.write_later(ENTRIES)
        await tier.close()

    run(main())
    assert stats.num_unwritten == len(ENTRIES)


def test_many_large_outputs_are_written_in_several_transactions(path: Path) -> None:
    entries = {key_of(number): entry_of(number, 100_000) for number in range(30)}
    run(keep(path, entries))

    async def main() -> dict[bytes, ItemOutput]:
        async with opened(path) as tier:
            return await tier.find(list(entries))

    found = run(main())
    newest = [same_entry(found.get(key), entry) for key, entry in entries.items()]
    assert newest[-20:] == [True] * 20
