"""What a cache has done since it was opened."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class CacheStats:
    """Counters of inputs, and sizes. The disk's are written by its own threads."""

    num_memory_hits: int = 0
    num_disk_hits: int = 0
    num_shared: int = 0  # another request computed them at the same time
    num_misses: int = 0
    num_dropped: int = 0  # corrupt, and computed anew; a corrupt file counts as one
    num_unwritten: int = 0  # computed and not kept on disk: it was full, too slow or locked
    memory_bytes: int = 0
    disk_bytes: int = 0
