"""Budgets for decoded media: one per request, within one that all requests share.

Small files can be large once decoded, so an amount is reserved before decoding.
"""

from __future__ import annotations

import threading

from infinity_emb.errors import BadInput, Overloaded
from infinity_emb.fair_budget import FairBudget


class SharedBudget:
    """The amount that the inputs of all requests may take together, shared by clients. Thread-safe."""

    def __init__(self, limit: int, unit: str) -> None:
        self.limit = limit
        self.unit = unit
        self._budget = FairBudget(limit)
        self._lock = threading.Lock()

    def reserve(self, client: str, amount: float) -> None:
        """Reserve an amount. Raises Overloaded when too little is left."""
        with self._lock:
            if not self._budget.take(client, amount):
                total = f"{self._budget.total:.0f} of {self.limit} {self.unit}"
                raise Overloaded(f"media queue full ({total}); try again later")

    def release(self, client: str, amount: float) -> None:
        """Return a reserved amount."""
        with self._lock:
            self._budget.give_back(client, amount)


class RequestBudget:
    """The amount that the inputs of one request may take together. Thread-safe."""

    def __init__(self, limit: int, shared: SharedBudget, client: str = "") -> None:
        self._limit = min(limit, shared.limit)
        self._shared = shared
        self._client = client
        self._reserved = 0.0
        self._is_open = True
        self._lock = threading.Lock()

    def reserve(self, amount: float) -> None:
        """Reserve an amount for one input.

        Raises BadInput when the request exceeds its own limit or has ended, and Overloaded.
        """
        with self._lock:
            if not self._is_open:  # a decoding thread may get here after the client has disconnected
                raise BadInput("belongs to a request that has ended")
            if self._reserved + amount > self._limit:
                raise BadInput(
                    f"brings this request over its limit of {self._limit} {self._shared.unit} in all;"
                    " send fewer or smaller inputs"
                )
            self._shared.reserve(self._client, amount)
            self._reserved += amount

    def close(self) -> None:
        """Release everything that was reserved."""
        with self._lock:
            self._is_open = False
            self._shared.release(self._client, self._reserved)
