"""Report the progress of loading a model to a listener that the caller has set.

Without a listener, a report costs nothing and a library's own progress bars stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Literal, NamedTuple, TypeAlias

LoadStage: TypeAlias = Literal[
    "finding files",
    "downloading",
    "importing libraries",
    "reading weights",
    "converting",
    "checking outputs",
    "warming up",
]


class LoadProgress(NamedTuple):
    """The stage that a load has reached; the bytes of a download, 0 in all other stages."""

    stage: LoadStage
    num_bytes: int = 0
    total_bytes: int = 0


Listener: TypeAlias = Callable[[LoadProgress], object]

_listener: ContextVar[Listener | None] = ContextVar("infinity_load_listener", default=None)


@contextlib.contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Call `listener` with the reports of loads inside the block, perhaps on other threads."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def get_listener() -> Listener | None:
    """Return the listener, to report from threads that have another context."""
    return _listener.get()


def report_stage(stage: LoadStage) -> None:
    """Report that the load has reached a stage."""
    if (listener := _listener.get()) is not None:
        listener(LoadProgress(stage))
