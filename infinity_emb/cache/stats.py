"""Count what a cache has done since it was opened."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class CacheStats:
    """Counters of inputs, and sizes. The threads of the disk tier update theirs."""

    num_memory_hits: int = 0
    num_disk_hits: int = 0
    num_shared: int = 0  # computed by another request at the same time
    num_misses: int = 0
    num_dropped: int = 0  # corrupt entries, recomputed; a corrupt file counts as one
    num_unwritten: int = 0  # not written to disk, which was full, slow or locked
    memory_bytes: int = 0
    disk_bytes: int = 0
