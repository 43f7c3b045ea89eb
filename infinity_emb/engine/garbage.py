"""Keep the garbage collector from walking over modules and models, which stay.

A full collection in a process that has imported torch holds the interpreter lock for up to 0.4 s, and
in a forked process it writes to, and so copies, the memory of every object.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def frozen_objects() -> Iterator[None]:
    """Keep all objects that exist now out of collections until the end of the block."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def keep_frozen() -> None:
    """Keep new objects out too, such as those of a model, inside a `frozen_objects` block."""
    if gc.get_freeze_count():
        gc.freeze()


def collect_all() -> None:
    """Collect reference cycles, also among frozen objects, and freeze what remains if any were frozen."""
    was_frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if was_frozen:
        gc.freeze()
