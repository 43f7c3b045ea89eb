"""Divide the cores of a CPU among the replicas of a model.

Two batches in parallel on one core each are faster than one after the other on both cores, since threads need
not wait for each other after every operator. A single batch should use all cores, so they are divided for
each batch, by the number of batches that are being computed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

# With fewer tokens per core, waking the core costs more than it gains.
MIN_TOKENS_PER_CORE = 32
# Even a short query reads all weights, which takes two cores little more than half the time of one.
MIN_TOKENS_FOR_TWO_CORES = 4


class SharedCores:
    """The cores that the replicas of one model share."""

    def __init__(self, num_cores: int) -> None:
        self._num_cores = num_cores
        self._num_computing = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def share(self, num_tokens: int) -> Iterator[None]:
        """Limit torch's operators on this thread to this batch's share until the end of the block."""
        with self._lock:
            self._num_computing += 1
            num_threads = self.count_threads(num_tokens, num_computing=self._num_computing)
        # The settings of OpenMP and MKL are per thread: a batch that started alone keeps all cores until it
        # ends, even beside the next one. Outputs differ only by rounding.
        if torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)
        try:
            yield
        finally:
            with self._lock:
                self._num_computing -= 1

    def count_threads(self, num_tokens: int, *, num_computing: int) -> int:
        """Return the number of cores for a batch.

        num_computing: batches that are being computed, this one included.
        """
        fair_share = self._num_cores // num_computing
        smallest = 2 if num_tokens >= MIN_TOKENS_FOR_TWO_CORES else 1
        return max(1, min(fair_share, max(smallest, num_tokens // MIN_TOKENS_PER_CORE)))


def use_one_thread() -> None:
    """Compute on the calling thread from now on: a forked process has none of its parent's threads."""
    torch.set_num_threads(1)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Limit torch's operators on this thread to one core until the end of the block, as under load.

    Measurements are then less disturbed by other processes.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
