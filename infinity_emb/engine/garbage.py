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
    global _is_frozen
    with _lock:
        _is_frozen = True
        _freeze()
    try:
        yield
    finally:
        with _lock:
            _is_frozen = False
            gc.unfreeze()


def freeze_new_objects() -> None:
    """Keep newer objects, such as a model's, out of collections too in a `frozen_objects` block."""
    with _lock:
        if _is_frozen:
            _freeze()


def collect_all() -> None:
    """Collect reference cycles; in a `frozen_objects` block, also those of frozen objects."""
    with _lock:
        if _is_frozen:
            gc.unfreeze()
            _freeze()
        else:
            gc.collect()


def _freeze() -> None:
    gc.collect()  # what is garbage now would never be collected
    gc.freeze()
