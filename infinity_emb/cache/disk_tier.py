"""Store outputs on disk, with a reader and a writer thread, so that no request waits for a write.

Disk errors never fail a request: an output that cannot be read is computed, one that cannot be written is
dropped, and both are counted.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from infinity_emb.cache.memory_tier import estimate_size_bytes
from infinity_emb.cache.serialization import pack_output, unpack_output
from infinity_emb.cache.sqlite_store import SqliteStore, delete_store
from infinity_emb.cache.stats import CacheStats
from infinity_emb.items import ItemOutput

# Outputs that may wait to be written; further ones are dropped.
MAX_WAITING_BYTES = 32 * 2**20
# Outputs are written together, to spread the fixed cost of a transaction.
_WRITE_DELAY_S, _WRITE_AT_BYTES = 0.2, 2**20
# A reader gives up when computing would be quicker; a writer has time.
_READ_TIMEOUT_S, _WRITE_TIMEOUT_S = 0.05, 5.0

logger = logging.getLogger("infinity_emb")

ResultT = TypeVar("ResultT")


class DiskTier:
    """A file of outputs, for one event loop. Must be closed."""

    def __init__(
        self, path: Path, *, max_bytes: int, stats: CacheStats, max_waiting_bytes: int = MAX_WAITING_BYTES
    ) -> None:
        self._path = path
        self._stats = stats
        self._max_waiting_bytes = max_waiting_bytes
        self._can_write = True
        self._is_closed = False
        self._lock = threading.Lock()  # for counters and the next two, which threads and the loop change
        self._waiting: dict[bytes, ItemOutput | None] = {}  # to be written, in order; None: to be deleted
        self._waiting_bytes = 0
        self._being_written: dict[bytes, ItemOutput | None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._reader = _StoreThread("reader", lambda: SqliteStore(path, max_bytes, _READ_TIMEOUT_S))
        self._writer = _StoreThread("writer", lambda: SqliteStore(path, max_bytes, _WRITE_TIMEOUT_S))
        self._writer.submit(lambda: self._run_guarded(self._writer, self._update_size))

    async def find(self, keys: Sequence[bytes]) -> dict[bytes, ItemOutput]:
        """Return the outputs that are stored and valid."""
        found: dict[bytes, ItemOutput] = {}
        for key in keys:
            output = self._waiting.get(key) or self._being_written.get(key)
            if output is not None:
                found[key] = output
        missing = [key for key in keys if key not in found]
        if missing and not self._is_closed:
            found |= await asyncio.wrap_future(self._reader.submit(lambda: self._read(missing)))
        return found

    def write_later(self, outputs: Mapping[bytes, ItemOutput]) -> None:
        """Schedule outputs that own their arrays to be written."""
        size_bytes = sum(map(estimate_size_bytes, outputs.values()))
        with self._lock:
            has_room = self._waiting_bytes + size_bytes <= self._max_waiting_bytes
            if self._is_closed or not self._can_write or not has_room:
                self._stats.num_unwritten += len(outputs)
                return
            self._waiting |= outputs
            self._waiting_bytes += size_bytes
        if self._waiting_bytes > _WRITE_AT_BYTES:
            self._write_now()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_WRITE_DELAY_S, self._write_now)

    async def close(self) -> None:
        """Write what is waiting and end the threads; from then on nothing is found or kept."""
        self._is_closed = True
        self._write_now()
        for thread in (self._writer, self._reader):
            await asyncio.to_thread(thread.close)

    def _write_now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._writer.submit(self._write_waiting)

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, ItemOutput]:
        """Read on the reader's thread; corrupt entries are scheduled to be deleted."""
        packed = self._run_guarded(self._reader, lambda store: store.read(keys)) or {}
        outputs = {key: unpack_output(key, value) for key, value in packed.items()}
        corrupt = [key for key, output in outputs.items() if output is None]
        with self._lock:
            self._stats.num_dropped += len(corrupt)
            self._waiting |= dict.fromkeys(corrupt)
        return {key: output for key, output in outputs.items() if output is not None}

    def _write_waiting(self) -> None:
        """Write on the writer's thread. After a failure the rest is dropped, as it would fail, too."""
        with self._lock:
            self._being_written, self._waiting = self._waiting, {}
            self._waiting_bytes = 0
        rest = list(self._being_written.items())
        while rest and (num_written := self._run_guarded(self._writer, functools.partial(self._write, rest))):
            del rest[:num_written]
        with self._lock:
            self._stats.num_unwritten += sum(output is not None for _, output in rest)
            self._being_written = {}

    def _write(self, outputs: Sequence[tuple[bytes, ItemOutput | None]], store: SqliteStore) -> int:
        """Write as many of the first outputs as fit into one transaction; return their number."""
        values: dict[bytes, bytes | None] = {}
        size_bytes = 0
        for key, output in outputs:
            value = None if output is None else pack_output(key, output)
            values[key] = value
            size_bytes += 0 if value is None else len(value)
            if size_bytes > store.max_write_bytes:
                break
        store.write(values)
        self._update_size(store)
        return len(values)

    def _update_size(self, store: SqliteStore) -> None:
        self._stats.disk_bytes = store.measure_size_bytes()

    def _run_guarded(self, thread: _StoreThread, action: Callable[[SqliteStore], ResultT]) -> ResultT | None:
        """Return what `action` returns; None if the file is corrupt or locked, or the disk fails."""
        try:
            return action(thread.open_store())
        except sqlite3.OperationalError as exc:
            if "locked" not in str(exc):  # a lock is temporary
                self._stop_writing(exc)
        except sqlite3.DatabaseError as exc:
            logger.warning("vector cache %s is corrupt (%s); recreating it", self._path, exc)
            with self._lock:
                self._stats.num_dropped += 1
            thread.delete_store(self._path)
        except OSError as exc:
            self._stop_writing(exc)
        return None

    def _stop_writing(self, error: Exception) -> None:
        if self._can_write:
            self._can_write = False
            logger.warning(
                "cannot write vector cache %s (%s); using it read-only; free disk space or set INFINITY_HOME"
                " to a writable folder, then restart",
                self._path,
                error,
            )


class _StoreThread:
    """A thread with its connection to the file, opened when first needed."""

    def __init__(self, name: str, connect: Callable[[], SqliteStore]) -> None:
        self._connect = connect
        self._store: SqliteStore | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"infinity-cache-{name}")
        self.submit = self._executor.submit

    def open_store(self) -> SqliteStore:
        """Return the connection, reopened if the file was replaced. Raises sqlite3.Error and OSError."""
        if self._store is not None and not self._store.is_current():
            self._close_store()
        if self._store is None:
            self._store = self._connect()
        return self._store

    def delete_store(self, path: Path) -> None:
        """Delete the file; `open_store` creates another."""
        self._close_store()
        delete_store(path)

    def close(self) -> None:
        """Wait until everything that was submitted has ended."""
        self._executor.submit(self._close_store)
        self._executor.shutdown()

    def _close_store(self) -> None:
        if self._store is not None:
            self._store.close()
        self._store = None
