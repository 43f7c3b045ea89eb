"""Which of the waiting items go through the device next: pure rules over plain values.

Knows nothing of clocks, locks, threads, devices or what an item means; the worker asks whenever a device
is free. Three rules, each held by a property-based test:

1. The first waiting item always leaves with the next batch, whatever its size. So an item leaves after
   at most as many batches as there are items before it, and an oversize one blocks nobody.
2. Apart from a first item that is over the budget by itself, no batch is over the token budget or the
   item limit.
3. What does not fit any more is passed over, and keeps its place.

Who is first, `fairness.py` says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from infinity_emb.fairness import LANE_WEIGHTS, Entry, FairQueue, Flow
from infinity_emb.primitives import Lane

# How many items that do not fit may be passed over while a batch is filled: bounds the work per batch.
MAX_PASSED_OVER = 64
# So many batches that succeed bring a budget that shrank to nothing back to what it was.
RECOVERY_STEPS = 64
# A batch is not made smaller than this for the sake of computing it beside another.
MIN_SHARED_TOKENS = 192


class Waiting(Protocol):
    """What the rules need to know of an item."""

    @property
    def flow(self) -> Flow: ...

    @property
    def num_tokens(self) -> int: ...

    @property
    def is_cancelled(self) -> bool: ...


ItemT = TypeVar("ItemT", bound=Waiting)


class WaitingQueue(Generic[ItemT]):
    """Items that wait, and the next batch from among them. Not thread-safe by itself."""

    def __init__(self, *, max_batch_tokens: int, max_batch_items: int) -> None:
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_items = max_batch_items
        self._full_batch_tokens = max_batch_tokens
        self.num_dropped = 0  # items that were cancelled before they could leave
        self._items: FairQueue[ItemT] = FairQueue()
        self._num_tokens: dict[Lane, int] = dict.fromkeys(LANE_WEIGHTS, 0)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def num_tokens(self) -> int:
        """Tokens of all waiting items, cancelled ones included until they are dropped."""
        return sum(self._num_tokens.values())

    def num_tokens_of(self, lane: Lane) -> int:
        """Those of one lane."""
        return self._num_tokens[lane]

    def add(self, items: Iterable[ItemT]) -> None:
        """Put items behind those of their flow, in their order."""
        items = list(items)
        self._items.add(items)
        for item in items:
            self._num_tokens[item.flow.lane] += item.num_tokens

    def take_all(self) -> list[ItemT]:
        """Empty the queue."""
        self._num_tokens = dict.fromkeys(LANE_WEIGHTS, 0)
        return self._items.pop_all()

    def take_batch(self, *, num_idle_replicas: int = 1, tokens_beside: int = 0) -> list[ItemT]:
        """Remove and return the next batch.

        Empty when nothing waits but what is cancelled, or too little for a batch beside another.
        num_idle_replicas: how many replicas could start now, the caller included. The waiting tokens are
        shared among them, so that one replica does not take what two could compute side by side.
        tokens_beside: how many tokens another replica computes on the same device now. It would take a core
        from that batch to compute a few, so these wait until it ends or there are more of them.
        """
        num_waiting = self.num_tokens
        if num_waiting < min(MIN_SHARED_TOKENS, tokens_beside):
            return []
        budget = self._shared_budget(num_waiting, num_idle_replicas)
        batch: list[ItemT] = []
        passed_over: list[Entry[ItemT]] = []
        tokens = 0
        while self._items and len(batch) < self.max_batch_items and len(passed_over) < MAX_PASSED_OVER:
            entry = self._items.pop()
            item = entry[-1]
            if item.is_cancelled:
                self._num_tokens[item.flow.lane] -= item.num_tokens
                self.num_dropped += 1
            elif not batch or tokens + item.num_tokens <= budget:
                batch.append(item)
                tokens += item.num_tokens
                self._num_tokens[item.flow.lane] -= item.num_tokens
                self._items.advance(entry[0])
                if tokens >= budget:
                    break
            else:
                passed_over.append(entry)
        self._items.put_back(passed_over)
        return batch

    def shrink(self, num_tokens: int) -> None:
        """A batch of so many tokens did not fit into the device's memory: the next ones are half as large."""
        self.max_batch_tokens = max(1, min(self.max_batch_tokens, num_tokens) // 2)

    def recover(self, num_tokens: int) -> None:
        """A batch of so many tokens succeeded: where it was near a budget that shrank, that grows again."""
        if 2 * num_tokens >= self.max_batch_tokens < self._full_batch_tokens:
            step = max(1, self._full_batch_tokens // RECOVERY_STEPS)
            self.max_batch_tokens = min(self._full_batch_tokens, self.max_batch_tokens + step)

    def _shared_budget(self, num_waiting: int, num_idle_replicas: int) -> int:
        fair_share = math.ceil(num_waiting / max(1, num_idle_replicas))
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
