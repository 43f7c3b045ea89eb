"""Measure how fast the devices of a model compute, as moving averages of counters that the caller reads."""

from __future__ import annotations

import math
from typing import NamedTuple

from infinity_emb.scheduling.fair_queue import LANE_WEIGHTS

# Weight of a new measurement in the moving average, and the least compute time between two measurements.
_SMOOTHING = 0.3
_MIN_MEASURED_S = 0.25
# Share of the devices that bulk work gets while there are always interactive requests.
_LEAST_BULK_SHARE = LANE_WEIGHTS["bulk"] / sum(LANE_WEIGHTS.values())


class Progress(NamedTuple):
    """Work that the devices of a model have done since they started.

    compute_s: summed over the `num_parallel` batches that may be computed at the same time.
    """

    num_items: int
    num_tokens: int
    compute_s: float
    num_parallel: int


class Throughput:
    """Moving averages of items and tokens per second; infinite until enough was computed.

    bulk_share: the share of the devices that interactive requests leave to bulk work.
    """

    def __init__(self) -> None:
        self.items_per_s = math.inf
        self.tokens_per_s = math.inf
        self.bulk_share = 1.0
        self._measured = Progress(0, 0, 0.0, 1)
        self._num_taken = self._num_taken_bulk = 0

    def update(self, progress: Progress, num_taken_tokens: int, num_taken_bulk_tokens: int) -> None:
        """Take a measurement if enough was computed since the last one.

        num_taken_tokens, num_taken_bulk_tokens: tokens taken from the queue since it was created.
        """
        compute_s = (progress.compute_s - self._measured.compute_s) / progress.num_parallel
        if compute_s < _MIN_MEASURED_S:
            return
        items_per_s = (progress.num_items - self._measured.num_items) / compute_s
        tokens_per_s = (progress.num_tokens - self._measured.num_tokens) / compute_s
        self.items_per_s = _smooth(self.items_per_s, items_per_s)
        self.tokens_per_s = _smooth(self.tokens_per_s, tokens_per_s)
        if num_taken := num_taken_tokens - self._num_taken:
            bulk_share = (num_taken_bulk_tokens - self._num_taken_bulk) / num_taken
            self.bulk_share = max(_LEAST_BULK_SHARE, _smooth(self.bulk_share, bulk_share))
        self._measured = progress
        self._num_taken, self._num_taken_bulk = num_taken_tokens, num_taken_bulk_tokens

    def estimate_s(self, num_items: int, num_tokens: int) -> float:
        """Estimate how long the devices take for this much work; 0 while that is unknown.

        Some admitted inputs are not tokenized yet, so the queued tokens alone would underestimate it.
        """
        return max(num_items / self.items_per_s, num_tokens / self.tokens_per_s)


def _smooth(average: float, measured: float) -> float:
    measured = max(measured, 1e-9)
    return measured if math.isinf(average) else average + _SMOOTHING * (measured - average)
