"""The rules that form the next batch from the queued items. Pure: no threads, no clock.

Three rules, each checked by a property-based test:

1. The first item always leaves with the next batch, whatever its size. So an item waits for at most as many
   batches as there are items before it, and an oversize item blocks no other.
2. Unless its first item alone exceeds the token budget, a batch stays within the token budget and the item
   limit.
3. An item that does not fit is passed over and keeps its place.

`fair_queue` decides the order of the items.
"""

from __future__ import annotations

import math
from typing import Protocol, TypeVar

from infinity_emb.scheduling.fair_queue import FairQueue, FlowItem, Tagged

# Items that may be passed over while a batch is filled; bounds the work per batch.
MAX_PASSED_OVER = 64
# Full batches after which a token budget that shrank to almost nothing is back at its configured value.
RECOVERY_STEPS = 64
# Batches are not made smaller than this in order to compute two at a time.
MIN_SHARED_TOKENS = 192


class BatchItem(FlowItem, Protocol):
    """Properties of an item that the rules depend on."""

    @property
    def is_cancelled(self) -> bool: ...


ItemT = TypeVar("ItemT", bound=BatchItem)


class BatchQueue(FairQueue[ItemT]):
    """A fair queue that forms batches.

    max_batch_tokens: current token budget of a batch, at most the configured one.
    num_skipped: cancelled items that were removed instead of taken.
    """

    def __init__(self, *, max_batch_tokens: int, max_batch_items: int) -> None:
        super().__init__()
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_items = max_batch_items
        self.num_skipped = 0
        self._configured_batch_tokens = max_batch_tokens

    def take_batch(self, *, num_idle_replicas: int = 1, num_concurrent_tokens: int = 0) -> list[ItemT]:
        """Remove and return the next batch; [] when no item is worth computing now.

        num_idle_replicas: how many replicas could start a batch now, including this one. They share the
        queued tokens, so that one does not take what two could compute at the same time.
        num_concurrent_tokens: how many tokens another replica computes on the same device now. A few items
        would slow that batch down more than they gain, so they wait until it ends or more have come.
        """
        num_queued = self.num_tokens
        if num_queued < min(MIN_SHARED_TOKENS, num_concurrent_tokens):
            return []
        budget = self._shared_budget(num_queued, num_idle_replicas)
        batch: list[ItemT] = []
        passed_over: list[Tagged[ItemT]] = []
        num_tokens = 0
        while len(self) and len(batch) < self.max_batch_items and len(passed_over) < MAX_PASSED_OVER:
            start_tag, _, item = tagged = self.pop()
            if item.is_cancelled:
                self.num_skipped += 1
            elif not batch or num_tokens + item.num_tokens <= budget:
                batch.append(item)
                num_tokens += item.num_tokens
                self.advance(start_tag)
                if num_tokens >= budget:
                    break
            else:
                passed_over.append(tagged)
        self.put_back(passed_over)
        return batch

    def shrink(self, num_tokens: int) -> None:
        """Halve the token budget after a batch of `num_tokens` ran out of memory."""
        self.max_batch_tokens = max(1, min(self.max_batch_tokens, num_tokens) // 2)

    def grow(self, num_tokens: int) -> None:
        """Raise a shrunken token budget after a batch of `num_tokens`, near that budget, succeeded."""
        if 2 * num_tokens >= self.max_batch_tokens < self._configured_batch_tokens:
            step = max(1, self._configured_batch_tokens // RECOVERY_STEPS)
            self.max_batch_tokens = min(self._configured_batch_tokens, self.max_batch_tokens + step)

    def _shared_budget(self, num_queued: int, num_idle_replicas: int) -> int:
        fair_share = math.ceil(num_queued / max(1, num_idle_replicas))
        return min(self.max_batch_tokens, max(fair_share, MIN_SHARED_TOKENS))
