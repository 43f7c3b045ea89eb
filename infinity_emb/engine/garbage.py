"""Keep the garbage collector from walking over modules and models, which stay.

A full collection in a process that has imported torch holds the interpreter lock for up to 0.4 s, and in a
forked process it writes to, and so copies, the memory of every object.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_is_frozen = False


@contextlib.contextmanager
def frozen_objects() -> Iterator[None]:
    """Keep all objects that exist now out of collections until the end of the block."""
    _set_frozen(True)
    try:
        yield
    finally:
        _set_frozen(False)


def collect_all() -> None:
    """Collect reference cycles; in a `frozen_objects` block frozen ones too, and freeze what remains."""
    with _lock:
        if _is_frozen:
            gc.unfreeze()
        gc.collect()
        if _is_frozen:
            gc.freeze()


def freeze_new_objects() -> None:
    """Collect, and in a `frozen_objects` block keep what remains, such as a new model, out of collections."""
    with _lock:
        if _is_frozen:
            gc.collect()
            gc.freeze()


def _set_frozen(is_frozen: bool) -> None:
    global _is_frozen
    with _lock:
        _is_frozen = is_frozen
        if is_frozen:
            gc.collect()
            gc.freeze()
        else:
            gc.unfreeze()
