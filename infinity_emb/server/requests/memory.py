"""Limit the bytes that all requests of an app hold in memory: bodies, texts, vectors and responses."""

from __future__ import annotations

import sys

from starlette.exceptions import HTTPException

from infinity_emb.fair_budget import FairBudget

# Smaller bodies count as they are: what is parsed takes at most 40 times as much.
_MIN_MEASURED_BYTES = 2**10
# A text that is not ASCII is also kept in UTF-8, once a library has asked for that.
_MAX_UTF8_BYTES = 4
_SLICE = 2**14


class MemoryBudget:
    """The bytes that the requests of one app hold, and their limit, of which each client has a share."""

    def __init__(self, max_total_bytes: int) -> None:
        self._budget = FairBudget(max_total_bytes)

    @property
    def num_held_bytes(self) -> int:
        """Bytes of all requests."""
        return int(self._budget.total)

    def open(self, client: str) -> HeldMemory:
        """Return a context that counts what one request of a client holds until its end."""
        return HeldMemory(self._budget, client)


class HeldMemory:
    """The bytes that one request holds: of its body, its texts and their vectors, or its response."""

    def __init__(self, budget: FairBudget, client: str) -> None:
        self._budget = budget
        self._client = client
        self.num_bytes = 0
        self._is_open = True

    def __enter__(self) -> HeldMemory:
        return self

    def __exit__(self, *_: object) -> None:
        """Release everything; what is added later, by work that another request shares, is not counted."""
        self.hold(0)
        self._is_open = False

    def take(self, num_bytes: int) -> HTTPException | None:
        """Hold so many bytes more, or return a 503 when there is no room for them."""
        return self._try_to_hold(self.num_bytes + num_bytes) if self._is_open else None

    def hold(self, num_bytes: int) -> None:
        """Replace what the request holds. Raises HTTPException 503 when there is no room for it."""
        if (error := self._try_to_hold(num_bytes)) is not None:
            raise error

    def _try_to_hold(self, num_bytes: int) -> HTTPException | None:
        num_more = num_bytes - self.num_bytes
        if num_more == 0:
            return None
        if num_more < 0:
            self._budget.give_back(self._client, -num_more)
        elif not self._budget.take(self._client, num_more):
            return HTTPException(
                503,
                f"the requests and responses in memory would have more than {self._budget.limit} bytes"
                " together, or this client's more than its share; try again later, send fewer inputs in one"
                " request, or start the server with a larger --max-total-body-bytes",
            )
        self.num_bytes = num_bytes
        return None


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
