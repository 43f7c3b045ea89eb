"""Limit the bytes that all requests of an app hold in memory: bodies, texts, vectors and responses."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

from starlette.exceptions import HTTPException

from infinity_emb.fair_budget import RESERVE_FRACTION, FairBudget
from infinity_emb.hardware import return_freed_memory

# Smaller bodies count with their own size: the parsed values take at most 40 times as much.
_MIN_MEASURED_BYTES = 2**10
# Python also keeps the UTF-8 form of a text that is not ASCII, once a library has asked for it.
_MAX_UTF8_BYTES = 4
_SLICE = 2**14
# The C library keeps freed memory, for each thread that has allocated any. It is returned to the system when
# it may be this fraction of the limit, within these bounds.
_FREED_FRACTION = 1 / 16
_MIN_FREED_BYTES, _MAX_FREED_BYTES = 2**22, 2**26


class MemoryBudget:
    """The bytes that the requests of one app hold, and their limit, of which each client has a share.

    max_total_bytes: of all clients, with what is freed and not yet returned to the system.
    return_freed: returns it; called on a thread.
    """

    def __init__(
        self, max_total_bytes: int, return_freed: Callable[[], object] = return_freed_memory
    ) -> None:
        max_freed_bytes = min(_MAX_FREED_BYTES, int(_FREED_FRACTION * max_total_bytes))
        self._budget = FairBudget((max_total_bytes - max_freed_bytes) / (1 + RESERVE_FRACTION))
        self._max_total_bytes = max_total_bytes
        self._max_freed_bytes = max(_MIN_FREED_BYTES, max_freed_bytes)
        self._return_freed = return_freed
        self._num_freed_bytes = 0

    @property
    def num_held_bytes(self) -> int:
        """Bytes of all requests."""
        return int(self._budget.total)

    def open(self, client: str) -> HeldMemory:
        """Return a context that counts what one request of a client holds until its end."""
        return HeldMemory(self, client)

    def change(self, client: str, num_bytes: int) -> bool:
        """Add to, or subtract from, the bytes of a client; return false if there is no room."""
        if num_bytes >= 0:
            return self._budget.take(client, num_bytes)
        self._budget.give_back(client, -num_bytes)
        self._num_freed_bytes -= num_bytes
        if self._num_freed_bytes >= self._max_freed_bytes:
            self._num_freed_bytes = 0
            threading.Thread(target=self._return_freed, name="infinity-memory", daemon=True).start()
        return True

    def make_error(self) -> HTTPException:
        """Return the 503 for a request that does not fit."""
        return HTTPException(
            503,
            f"the requests and responses in memory would have more than {self._max_total_bytes} bytes"
            " together, or this client's more than its share; try again later, send fewer inputs in one"
            " request, or start the server with a larger --max-total-body-bytes",
        )


class HeldMemory:
    """The bytes that one request holds: of its body, its texts and their vectors, or its response."""

    def __init__(self, budget: MemoryBudget, client: str) -> None:
        self._budget = budget
        self._client = client
        self.num_bytes = 0
        self._is_open = True

    def __enter__(self) -> HeldMemory:
        return self

    def __exit__(self, *_: object) -> None:
        """Release everything; bytes added later, by work that another request shares, are not counted."""
        self.hold(0)
        self._is_open = False

    def take(self, num_bytes: int) -> bool:
        """Hold `num_bytes` more and return true, if there is room for them."""
        return not self._is_open or self._try_to_hold(self.num_bytes + num_bytes)

    def hold(self, num_bytes: int) -> None:
        """Set the number of bytes that the request holds. Raises HTTPException 503 if there is no room."""
        if not self._try_to_hold(num_bytes):
            raise self.make_error()

    def make_error(self) -> HTTPException:
        """Return the 503 for a request that does not fit."""
        return self._budget.make_error()

    def _try_to_hold(self, num_bytes: int) -> bool:
        num_more = num_bytes - self.num_bytes
        if num_more and not self._budget.change(self._client, num_more):
            return False
        self.num_bytes = num_bytes
        return True


def measure_fields(fields: dict[str, object], num_body_bytes: int) -> int:
    """Return about how many bytes the fields of a body take in memory.

    num_body_bytes: of the JSON text.
    """
    if num_body_bytes < _MIN_MEASURED_BYTES:
        return num_body_bytes
    num_bytes = 0
    containers: list[object] = [fields]
    while containers:
        container = containers.pop()
        values = list(container.values()) if isinstance(container, dict) else container
        assert isinstance(values, list)
        num_bytes += sys.getsizeof(container)
        for start in range(0, len(values), _SLICE):  # other threads wait for the end of each `sum`
            num_bytes += sum(map(sys.getsizeof, values[start : start + _SLICE]))
        num_bytes += sum(
            _MAX_UTF8_BYTES * len(value) for value in values if isinstance(value, str) and not value.isascii()
        )
        containers += [value for value in values if isinstance(value, (dict, list))]
    return num_bytes
