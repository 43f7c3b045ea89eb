"""Cancel requests when Ctrl-C leaves the event loop that awaits them.

asyncio.run, servers and notebook kernels cancel their tasks on Ctrl-C. A loop under `run_until_complete`,
such as IPython's in a terminal, is left with a KeyboardInterrupt, and its requests would still be computed.
"""

from __future__ import annotations

import asyncio
import importlib
import signal
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn
from weakref import WeakKeyDictionary

from infinity_emb.scheduling.requests import PendingRequest

# `signal.getsignal` tries to convert the handler to an enum: each request would raise and catch an exception.
_get_handler = importlib.import_module("_signal").getsignal
# Weak, so that requests of a loop that was closed are freed with their tasks, which ends them.
_awaited: WeakKeyDictionary[PendingRequest, weakref.ref[asyncio.Task[object]] | None] = WeakKeyDictionary()


@contextmanager
def cancelled_by_interrupt(request: PendingRequest) -> Iterator[None]:
    """Cancel the request and its task when Ctrl-C raises KeyboardInterrupt inside the block."""
    if not _raises_interrupt() or threading.current_thread() is not threading.main_thread():
        yield
        return
    if not _awaited:
        signal.signal(signal.SIGINT, _cancel_and_raise)
    task = asyncio.current_task()
    _awaited[request] = None if task is None else weakref.ref(task)
    del task  # which holds this frame
    try:
        yield
    finally:
        _awaited.pop(request, None)
        if not _awaited and _raises_interrupt():
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _raises_interrupt() -> bool:
    return _get_handler(signal.SIGINT) in (signal.default_int_handler, _cancel_and_raise)


def _cancel_and_raise(_number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for request, reference in list(_awaited.items()):
        request.cancel()  # at once: the loop may never run again
        if reference is not None and (task := reference()) is not None:
            task.cancel()
    _awaited.clear()
    raise KeyboardInterrupt
