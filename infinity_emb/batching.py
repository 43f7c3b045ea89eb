"""Which of the waiting items go through the device next: pure rules over plain values.

Knows nothing of clocks, locks, threads, devices or what an item means; the worker asks whenever a device
is free. Three rules, each held by a property-based test:

1. The oldest waiting item always leaves with the next batch, whatever its size. So an item leaves after
   at most as many batches as there are items before it, and an oversize one blocks nobody.
2. Apart from a first item that is over the budget by itself, no batch is over the token budget or the
   item limit.
3. What does not fit any more is passed over, and keeps its place.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

# How many items that do not fit may be passed over while a batch is filled: bounds the work per batch.
MAX_PASSED_OVER = 64
# A batch is not made smaller than this for the sake of computing it beside another.
MIN_SHARED_TOKENS = 192


class Waiting(Protocol):
    """What the rules need to know of an item."""

    @property
    def num_tokens(self) -> int: ...

    @property
    def is_cancelled(self) -> bool: ...


ItemT = TypeVar("ItemT", bound=Waiting)


class WaitingQueue(Generic[ItemT]):
    """Items in order of arrival, and the next batch from among them. Not thread-safe by itself."""

    def __init__(self, *, max_batch_tokens: int, max_batch_items: int) -> None:
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_items = max_batch_items
        self._items: deque[ItemT] = deque()
        self._num_tokens = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def num_tokens(self) -> int:
        """Tokens of all waiting items, cancelled ones included until they are dropped."""
        return self._num_tokens

    def add(self, items: Iterable[ItemT]) -> None:
        """Put items at the end, in their order."""
        for item in items:
            self._items.append(item)
            self._num_tokens += item.num_tokens

    def take_all(self) -> list[ItemT]:
        """Empty the queue."""
        items = list(self._items)
        self._items.clear()
        self._num_tokens = 0
        return items

    def take_batch(self, *, num_idle_replicas: int = 1, tokens_beside: int = 0) -> list[ItemT]:
        """Remove and return the next batch.

        Empty when nothing waits but what is cancelled, or too little for a batch beside another.
        num_idle_replicas: how many replicas could start now, the caller included. The waiting tokens are
        shared among them, so that one replica does not take what two could compute side by side.
        tokens_beside: how many tokens another replica computes on the same device now. It would take a core
        from that batch to compute a few, so these wait until it ends or there are more of them.
        """
        if self._num_tokens < min(MIN_SHARED_TOKENS, tokens_beside):
            return []
        budget = self._shared_budget(num_idle_replicas)
        batch: list[ItemT] = []
        passed_over: list[ItemT] = []
        tokens = 0
        while self._items and len(batch) < self.max_batch_items and len(passed_over) < MAX_PASSED_OVER:
            item = self._items.popleft()
            if item.is_cancelled:
                self._num_tokens -= item.num_tokens
            elif not batch or tokens + item.num_tokens <= budget:
                batch.append(item)
                tokens += item.num_tokens
                self._num_tokens -= item.num_tokens
                if tokens >= budget:
                    break
            else:
                passed_over.append(item)
        self._items.extendleft(reversed(passed_over))
        return batch

    def _shared_budget(self, num_idle_replicas: int) -> int:
        fair_share = math.ceil(self._num_tokens / max(1, num_idle_replicas))
        return min(self.max_batch_tokens, max(fair_share, MIN_SHARED_TOKENS))


def split_batch(batch: list[ItemT]) -> tuple[list[ItemT], list[ItemT]]:
    """Two halves of a failed batch of two or more items, to find the item that is to blame."""
    middle = len(batch) // 2
    return batch[:middle], batch[middle:]


def groups_of_similar_length(lengths: list[int], *, max_padding: float) -> list[tuple[int, int]]:
    """Cut a batch into runs that may be padded to one length.

    lengths: token counts in ascending order.
    max_padding: the most of a group, as a fraction, that may be padding.
    Returns (start, end) pairs that cover the whole list in order.
    """
    groups: list[tuple[int, int]] = []
    start, tokens = 0, 0
    for position, length in enumerate(lengths):
        padded = length * (position - start + 1)
        if position > start and padded - (tokens + length) > max_padding * padded:
            groups.append((start, position))
            start, tokens = position, 0
        tokens += length
    if lengths:
        groups.append((start, len(lengths)))
    return groups
