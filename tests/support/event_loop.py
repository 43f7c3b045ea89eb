"""Run coroutines in tests, with a limit on how long they may take."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

# Every wait in a test is for an event; one that takes this long has failed.
PATIENCE_S = 60.0

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T], timeout_s: float = PATIENCE_S) -> T:
    """Return the result of a coroutine. Raises TimeoutError when it takes too long."""
    return asyncio.run(asyncio.wait_for(coroutine, timeout_s))
