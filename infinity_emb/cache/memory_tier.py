"""Keep the most recently used outputs in memory, up to a number of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from infinity_emb.errors import StartupError
from infinity_emb.items import ItemOutput, SparseVector

# Approximate memory of a key, an entry and its arrays, apart from their values.
_OVERHEAD_BYTES = 400


class MemoryTier:
    """A bounded store of outputs. Not thread-safe. Raises StartupError if cachetools is not installed."""

    def __init__(self, max_bytes: int) -> None:
        try:
            from cachetools import LRUCache
        except ImportError as exc:
            raise StartupError(
                "--vector-memory-cache-mb needs the library cachetools: pip install 'infinity-emb[cache]'"
            ) from exc
        self._outputs: LRUCache[bytes, ItemOutput] = LRUCache(max_bytes, getsizeof=estimate_size_bytes)

    @property
    def size_bytes(self) -> int:
        """Return the approximate memory in use."""
        return int(self._outputs.currsize)

    def find(self, keys: Iterable[bytes]) -> dict[bytes, ItemOutput]:
        """Return the outputs that are stored."""
        return {key: output for key in keys if (output := self._outputs.get(key)) is not None}

    def keep(self, outputs: Mapping[bytes, ItemOutput]) -> None:
        """Store outputs that own their arrays, except those larger than the whole store."""
        for key, output in outputs.items():
            if estimate_size_bytes(output) <= self._outputs.maxsize:
                self._outputs[key] = output


def estimate_size_bytes(output: ItemOutput) -> int:
    """Estimate the memory that an entry takes."""
    size_bytes = _OVERHEAD_BYTES
    for value in output.values:
        if isinstance(value, SparseVector):
            size_bytes += value.indices.nbytes + value.values.nbytes
        else:
            size_bytes += value.nbytes
    return size_bytes
