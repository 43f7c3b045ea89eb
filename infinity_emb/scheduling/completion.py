"""Complete each item exactly once, with its outputs or with an error, and count what was done."""

from __future__ import annotations

import operator
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from infinity_emb.errors import BackendFailed, BadInput
from infinity_emb.scheduling.histogram import StageHistograms
from infinity_emb.scheduling.launched_batch import LaunchedBatch
from infinity_emb.scheduling.requests import Item, PendingRequest
from infinity_emb.scheduling.stages import ComputedBatch


class WorkerStats(NamedTuple):
    """Counters since the pool was created. No item is counted twice."""

    num_batches: int = 0
    num_items: int = 0  # completed with a result
    num_tokens: int = 0
    num_failed_items: int = 0
    num_split_batches: int = 0
    num_retried_items: int = 0  # computed again: alone after a crash, or in float32
    num_out_of_memory: int = 0  # batches
    num_restarts: int = 0  # of worker threads
    num_skipped_items: int = 0  # of requests that were cancelled, timed out or failed
    compute_s: float = 0.0

    def plus(self, other: WorkerStats) -> WorkerStats:
        """Return the sums of both."""
        return WorkerStats(*map(operator.add, self, other))


class Completer:
    """End items and the requests they belong to. Safe to call from any thread.

    stats: a frozen snapshot, replaced whenever something is counted.
    """

    def __init__(self, histograms: StageHistograms) -> None:
        self.stats = WorkerStats()
        self._histograms = histograms
        self.lock = threading.Lock()

    def complete(self, launched: LaunchedBatch, items: Sequence[Item]) -> int:
        """End the items of a batch whose outputs are stored; return how many tokens were computed."""
        stored_s = time.monotonic()
        with self.lock:
            ended = _mark_done(items)
            num_tokens = sum(item.num_tokens for item in ended)
            counts: defaultdict[PendingRequest, int] = defaultdict(int)  # faster than a `Counter`
            sizes: defaultdict[PendingRequest, int] = defaultdict(int)
            for item in ended:
                counts[item.request] += 1
                if item.request.on_outputs is not None:
                    sizes[item.request] += item.request.count_bytes(item.index)
            compute_s = stored_s - launched.started_s
            self._observe(launched, ended, num_tokens, compute_s)
            if any(request.stages is not None for request in counts):
                _record_stages(launched, ended, num_tokens, stored_s)
            done = [request for request, number in counts.items() if request.count_completed(number)]
            self.stats = self.stats.plus(
                WorkerStats(num_batches=1, num_items=len(ended), num_tokens=num_tokens, compute_s=compute_s)
            )
        for request, number in counts.items():
            if request.on_progress is not None and not request.is_cancelled:
                request.on_progress(number)
        for request, num_bytes in sizes.items():
            if request.on_outputs is not None and not request.is_cancelled:
                request.on_outputs(num_bytes)
        for request in done:
            request.on_done(request)
        return num_tokens

    def _observe(
        self, launched: LaunchedBatch, items: Sequence[Item], num_tokens: int, compute_s: float
    ) -> None:
        # Inputs that were encoded together were queued at the same time.
        for queued_s, number in Counter(item.queued_s for item in items).items():
            self._histograms.queue_s.observe(max(0.0, launched.started_s - queued_s), number)
        self._histograms.batch_s.observe(compute_s)
        self._histograms.forward_s.observe(launched.computed_s - launched.started_s)
        self._histograms.batch_tokens.observe(num_tokens)
        self._histograms.batch_items.observe(len(items))

    def fail(self, items: Iterable[Item], error: Exception) -> int:
        """End the items that have not ended with an error; return their number, cancelled ones excluded."""
        with self.lock:
            failed = [item for item in _mark_done(items) if not item.is_cancelled]
            first: dict[PendingRequest, Item] = {}
            for item in failed:
                first.setdefault(item.request, item)
            for request, item in first.items():
                request.set_error(_locate(error, item))
            self.stats = self.stats.plus(WorkerStats(num_failed_items=len(failed)))
        for request in first:
            request.on_done(request)
        return len(failed)

    def count(self, increments: WorkerStats) -> None:
        """Add to the counters."""
        with self.lock:
            self.stats = self.stats.plus(increments)


def _record_stages(launched: LaunchedBatch, items: Sequence[Item], num_tokens: int, stored_s: float) -> None:
    """Add the batch to the records of its requests that have one."""
    batch = ComputedBatch(
        launched_s=launched.started_s,
        computed_s=launched.computed_s,
        stored_s=stored_s,
        num_items=len(items),
        num_tokens=num_tokens,
    )
    queued_s: dict[PendingRequest, float] = {}
    for item in items:
        queued_s[item.request] = min(item.queued_s, queued_s.get(item.request, item.queued_s))
    for request, first_s in queued_s.items():
        if request.stages is not None:
            request.stages.add_batch(batch, first_s)


def _mark_done(items: Iterable[Item]) -> list[Item]:
    """Return the items that end now, without those that ended before."""
    ending = [item for item in items if not item.is_done]
    for item in ending:
        item.is_done = True
    return ending


def _locate(error: Exception, item: Item) -> Exception:
    """Add the position of the input to an error that is about one."""
    return error.at_position(item.encoded.position) if isinstance(error, BackendFailed | BadInput) else error
