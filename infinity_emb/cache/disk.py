"""Answers on disk, read and written by two threads of their own: nobody waits for a write.

No trouble with the disk is an error for a client: what cannot be read is computed, what cannot be written is
not kept, and both are counted. Knows nothing of models or of how a key is made.
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

from infinity_emb.cache.entry_bytes import pack_entry, unpack_entry
from infinity_emb.cache.key_filter import KeyFilter
from infinity_emb.cache.memory import size_bytes_of
from infinity_emb.cache.stats import CacheStats
from infinity_emb.cache.vector_file import VectorFile, discard_file
from infinity_emb.computed import Entry

# What may wait to be written; what comes beyond that is not kept.
MAX_WAITING_BYTES = 32 * 2**20
# Writes are put together: what one costs besides its rows is spread over many.
_WRITE_DELAY_S, _ENOUGH_BYTES = 0.2, 2**20
# A reader gives up where it would be quicker to compute; a writer has time.
_READ_TIMEOUT_S, _WRITE_TIMEOUT_S = 0.05, 5.0

logger = logging.getLogger("infinity_emb")

ResultT = TypeVar("ResultT")


class DiskTier:
    """One file of answers, for one event loop. To be closed."""

    def __init__(self, path: Path, *, max_bytes: int, stats: CacheStats) -> None:
        self._path = path
        self._stats = stats
        self._can_write = True
        self._is_closed = False
        self._filter: KeyFilter | None = None  # None: what is there is not known yet
        self._lock = threading.Lock()  # of what the threads and the loop change: the next two, and counters
        self._waiting: dict[bytes, Entry | None] = {}  # to be written, in order; None: to be taken out
        self._waiting_bytes = 0
        self._being_written: dict[bytes, Entry | None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._reader = _FileThread("reader", lambda: VectorFile(path, max_bytes, _READ_TIMEOUT_S))
        self._writer = _FileThread("writer", lambda: VectorFile(path, max_bytes, _WRITE_TIMEOUT_S))
        self._writer.submit(lambda: self._attempt(self._writer, self._learn_keys))

    async def find(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """One per key: what was kept, and is whole."""
        entries = [self._waiting.get(key) or self._being_written.get(key) for key in keys]
        missing = [at for at, entry in enumerate(entries) if entry is None]
        known = self._filter
        if missing and known is not None:
            may_be_there = known.may_hold([keys[at] for at in missing])
            missing = [at for at, may_be in zip(missing, may_be_there, strict=True) if may_be]
        if missing and not self._is_closed:
            wanted = [keys[at] for at in missing]
            found = await asyncio.wrap_future(self._reader.submit(lambda: self._read(wanted)))
            for at, entry in zip(missing, found, strict=True):
                entries[at] = entry
        return entries

    def keep_soon(self, entries: Mapping[bytes, Entry]) -> None:
        """Write entries, whose arrays are in memory of their own, when there is time."""
        size_bytes = sum(map(size_bytes_of, entries.values()))
        with self._lock:
            has_room = self._waiting_bytes + size_bytes <= MAX_WAITING_BYTES
            if self._is_closed or not self._can_write or not has_room:
                self._stats.num_unwritten += len(entries)
                return
            self._waiting |= entries
            self._waiting_bytes += size_bytes
        if self._waiting_bytes > _ENOUGH_BYTES:
            self._write_now()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_WRITE_DELAY_S, self._write_now)

    async def close(self) -> None:
        """Write what waits, and end the threads; what comes after that is neither found nor kept."""
        self._is_closed = True
        self._write_now()
        for thread in (self._writer, self._reader):
            await asyncio.to_thread(thread.close)

    def _write_now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._writer.submit(self._write_waiting)

    def _read(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """On the reader's thread."""
        packed = self._attempt(self._reader, lambda file: file.read(keys)) or {}
        entries = {key: unpack_entry(key, each) for key, each in packed.items()}
        corrupt = [key for key, entry in entries.items() if entry is None]
        with self._lock:
            self._stats.num_dropped += len(corrupt)
            self._waiting |= dict.fromkeys(corrupt)
        return [entries.get(key) for key in keys]

    def _write_waiting(self) -> None:
        """On the writer's thread. What is refused is given up, all of it: the rest would be refused, too."""
        with self._lock:
            self._being_written, self._waiting = self._waiting, {}
            self._waiting_bytes = 0
        rest = list(self._being_written.items())
        while rest and (num_written := self._attempt(self._writer, functools.partial(self._write, rest))):
            del rest[:num_written]
        with self._lock:
            self._stats.num_unwritten += sum(entry is not None for _, entry in rest)
            self._being_written = {}

    def _write(self, entries: Sequence[tuple[bytes, Entry | None]], file: VectorFile) -> int:
        """Write as many as belong into one transaction, from the first on; how many they are."""
        values: dict[bytes, bytes | None] = {}
        size_bytes = 0
        for key, entry in entries:
            value = None if entry is None else pack_entry(key, entry)
            values[key] = value
            size_bytes += 0 if value is None else len(value)
            if size_bytes > file.max_write_bytes:
                break
        self._note_keys(file.write(values) + list(values), file)
        return len(values)

    def _learn_keys(self, file: VectorFile) -> None:
        """On the writer's thread: what is there."""
        known = KeyFilter(file.count())
        for keys in file.all_keys():
            known.add(keys)
        self._filter = known
        self._stats.disk_bytes = file.size_bytes()

    def _note_keys(self, keys: Sequence[bytes], file: VectorFile) -> None:
        if self._filter is None or self._filter.is_crowded:
            self._learn_keys(file)
            return
        self._filter.add(keys)
        self._stats.disk_bytes = file.size_bytes()

    def _attempt(self, thread: _FileThread, action: Callable[[VectorFile], ResultT]) -> ResultT | None:
        """What `action` returns; None where the file is damaged or in use, or the disk refuses."""
        try:
            return action(thread.file())
        except sqlite3.OperationalError as exc:
            if "locked" not in str(exc):  # that passes
                self._stop_writing(exc)
        except sqlite3.DatabaseError as exc:
            logger.warning("the vector cache %s is damaged (%s); it is begun anew", self._path, exc)
            with self._lock:
                self._stats.num_dropped += 1
            thread.discard(self._path)
        except OSError as exc:
            self._stop_writing(exc)
        return None

    def _stop_writing(self, error: Exception) -> None:
        if self._can_write:
            self._can_write = False
            logger.warning(
                "the vector cache %s cannot be written (%s): from now on it is only read; make room, or set"
                " INFINITY_HOME to a folder that can be written, and start again",
                self._path,
                error,
            )


class _FileThread:
    """A thread with a connection of its own, which it opens when it first needs it."""

    def __init__(self, name: str, open_file: Callable[[], VectorFile]) -> None:
        self._open_file = open_file
        self._file: VectorFile | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"infinity-cache-{name}")
        self.submit = self._executor.submit

    def file(self) -> VectorFile:
        """The file that lies there now: another may have taken its place. Raises sqlite3.Error, OSError."""
        if self._file is not None and not self._file.is_in_place():
            self._close_file()
        if self._file is None:
            self._file = self._open_file()
        return self._file

    def discard(self, path: Path) -> None:
        """Delete the file, and open another next time."""
        self._close_file()
        discard_file(path)

    def close(self) -> None:
        """Wait until everything that was submitted has ended."""
        self._executor.submit(self._close_file)
        self._executor.shutdown()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None
