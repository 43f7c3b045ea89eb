"""Budgets of bytes, pixels or seconds that clients share, so that no client takes all of one."""

from __future__ import annotations

# On top of the limit, for clients that hold less than others.
RESERVE_FRACTION = 1 / 8

# What sums of fractions, such as seconds of audio, leave.
_ROUNDING_ERROR = 1e-6


class FairBudget:
    """An amount, and how much of it each client holds. Not thread-safe.

    limit: what a client alone may hold. There is a reserve on top of it; the less is left of both, the less
    each client may hold, so that one that holds less than others finds room.
    Source: Choudhury and Hahne 1998, "Dynamic queue length thresholds for shared-memory packet switches",
    https://doi.org/10.1109/90.664262
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.total = 0.0
        self._held: dict[str, float] = {}  # of clients that hold something

    def take(self, client: str, amount: float) -> bool:
        """Take an amount and return true, if there is room for it."""
        held = self._held.get(client, 0.0)
        left = (1 + RESERVE_FRACTION) * self.limit - self.total - amount
        if held + amount > left / RESERVE_FRACTION:
            return False
        self.total += amount
        self._held[client] = held + amount
        return True

    def give_back(self, client: str, amount: float) -> None:
        """Return what was taken."""
        self.total -= amount
        self._held[client] = self._held.get(client, 0.0) - amount
        if self._held[client] <= _ROUNDING_ERROR:
            del self._held[client]
        if not self._held:
            self.total = 0.0  # sums of fractions leave a rest
