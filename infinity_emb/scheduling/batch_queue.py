"""The rules that form the next batch from the queued items. Pure: no threads, no clock.

Five rules, each checked by a property-based test:

1. The first item always leaves with the next batch, whatever its size. So an item waits for at most as many
   batches as there are items before it, and an oversize item blocks no other.
2. Unless its first item alone exceeds the token budget, a batch stays within the token budget and the item
   limit.
3. An item that does not fit is passed over and keeps its place.
4. While another flow has little to compute, bulk items and those of a flow with more than a batch of work
   fill only a short batch, which takes about SHORT_BATCH_S. So a text neither waits for a long batch of
   passages nor shares one.
5. Replicas that compute on one device share the queued items, and a batch leaves none or enough for another
   batch. So a replica that ends does not stay idle beside queued items.

`fair_queue` decides the order of the items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

from infinity_emb.scheduling.fair_queue import FairQueue, Flow, FlowItem, Tagged

# Items that may be passed over while a batch is filled; bounds the work per batch.
MAX_PASSED_OVER = 64
# Full batches after which a token budget that shrank to almost nothing is back at its configured value.
RECOVERY_STEPS = 64
# Batches are not made smaller than this in order to compute two at a time, or to make them short.
MIN_SHARED_TOKENS = 128
# The duration of a short batch. On a GPU the largest batch takes less, and nothing changes.
SHORT_BATCH_S = 0.1
# Batches that stay short after the last item of a flow with little to compute.
NUM_SHORT_BATCHES = 16
# Weight of a new measurement in the average speed.
_SMOOTHING = 0.3


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
        self._tokens_per_s = math.inf  # until a batch was measured
        self._num_short_batches = 0  # which are still to come
        self._light_flow: Flow | None = None  # whose items made them short; None for several

    @property
    def short_batch_tokens(self) -> float:
        """Return how many tokens a short batch has; infinity until a batch was measured."""
        return max(MIN_SHARED_TOKENS, SHORT_BATCH_S * self._tokens_per_s)

    def take_batch(self, *, num_idle_replicas: int = 1, concurrent_tokens: Sequence[int] = ()) -> list[ItemT]:
        """Remove and return the next batch; [] when no item is worth computing now.

        num_idle_replicas: how many replicas could start a batch now, including this one. They share the
            queued tokens, so that one does not take what two could compute at the same time.
        concurrent_tokens: how many tokens each other replica computes on the same device now. A few items
            would slow those batches down more than they gain, so they wait until one ends or more have come.
            Nor does a batch take more than an equal share of all tokens, queued or being computed: else the
            other replicas would find too few for a batch when they end.
        """
        num_queued, num_concurrent = self.num_tokens, sum(concurrent_tokens)
        if num_queued < min(MIN_SHARED_TOKENS, num_concurrent):
            return []
        self._num_short_batches -= 1
        budget = self._share_tokens(num_concurrent, max(1, num_idle_replicas) + len(concurrent_tokens))
        max_limited_tokens = self.short_batch_tokens
        batch: list[ItemT] = []
        passed_over: list[Tagged[ItemT]] = []
        num_tokens = num_limited_tokens = 0
        while len(self) and len(batch) < self.max_batch_items and len(passed_over) < MAX_PASSED_OVER:
            start_tag, _, item = tagged = self.pop()
            if item.is_cancelled:
                self.num_skipped += 1
                continue
            has_room = num_tokens + item.num_tokens <= budget
            if self._is_limited(item):
                num_limited_tokens += item.num_tokens
                has_room = has_room and num_limited_tokens <= max_limited_tokens
            if batch and not has_room:
                passed_over.append(tagged)
                continue
            batch.append(item)
            num_tokens += item.num_tokens
            self.advance(start_tag)
            if num_tokens >= budget:
                break
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

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Learn the speed from a batch; small ones are left out, as they take longer per token."""
        if num_tokens >= MIN_SHARED_TOKENS and seconds > 0:
            measured = num_tokens / seconds
            average = measured if math.isinf(self._tokens_per_s) else self._tokens_per_s
            self._tokens_per_s = average + _SMOOTHING * (measured - average)

    def _is_limited(self, item: ItemT) -> bool:
        """Tell whether an item that was just removed may fill only a short batch.

        Items of a flow with little to compute may fill any batch, and make the next batches short.
        """
        flow = item.flow
        num_flow_tokens = self.num_flow_tokens(flow) + item.num_tokens
        if flow.lane == "bulk" or num_flow_tokens > self.max_batch_tokens:
            return self._num_short_batches > 0 and self._light_flow != flow
        is_only_one = self._num_short_batches <= 0 or self._light_flow == flow
        self._light_flow = flow if is_only_one else None
        self._num_short_batches = NUM_SHORT_BATCHES
        return False

    def _share_tokens(self, num_concurrent: int, num_sharing: int) -> int:
        """Return the token budget of a batch that shares all tokens with others."""
        num_queued = self.num_tokens
        fair_share = math.ceil((num_queued + num_concurrent) / num_sharing)
        budget = min(self.max_batch_tokens, max(fair_share, MIN_SHARED_TOKENS))
        if num_sharing == 1 or not 0 < num_queued - budget < MIN_SHARED_TOKENS:
            return budget
        if num_queued <= self.max_batch_tokens:
            return num_queued
        return max(num_queued - MIN_SHARED_TOKENS, min(budget, MIN_SHARED_TOKENS))
