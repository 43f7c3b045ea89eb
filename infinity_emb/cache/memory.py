"""Answers in memory: those that were asked for last, as many as fit. Knows nothing of threads or models."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from infinity_emb.backends.base import SparseRow
from infinity_emb.computed import Entry

# What Python takes for a key, an entry and its arrays, besides their numbers.
_OVERHEAD_BYTES = 400


class MemoryTier:
    """A bounded number of bytes, of which those that nobody asks for leave first. Not thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._max_bytes = max_bytes
        self.size_bytes = 0

    def find(self, keys: Iterable[bytes]) -> list[Entry | None]:
        """One per key."""
        return [self._find(key) for key in keys] if self._entries else [None for _ in keys]

    def keep(self, entries: Mapping[bytes, Entry]) -> None:
        """Keep entries whose arrays are in memory of their own; one that is larger than all room is not."""
        if not self._max_bytes:
            return
        for key, entry in entries.items():
            self._put(key, entry)
        while self.size_bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.size_bytes -= size_bytes_of(oldest)

    def _put(self, key: bytes, entry: Entry) -> None:
        size_bytes = size_bytes_of(entry)
        if size_bytes <= self._max_bytes:
            before = self._entries.pop(key, None)
            self._entries[key] = entry
            self.size_bytes += size_bytes - (0 if before is None else size_bytes_of(before))

    def _find(self, key: bytes) -> Entry | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry


def size_bytes_of(entry: Entry) -> int:
    """What an entry takes in memory, about."""
    size_bytes = _OVERHEAD_BYTES
    for value in entry.values:
        if isinstance(value, SparseRow):
            size_bytes += value.indices.nbytes + value.values.nbytes
        else:
            size_bytes += value.nbytes
    return size_bytes
