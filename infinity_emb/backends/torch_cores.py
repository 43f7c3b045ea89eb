"""How many cores a batch may use, where several replicas of a model compute on one CPU.

Two batches side by side on one core each are faster than one after the other on both: nobody waits at the
end of every operator. But a batch that is alone should have all cores. So the cores are divided anew at
each batch, by how many are computing. Knows nothing of what is computed; figures in docs/measurements.md.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

# Fewer tokens than this for each core do not pay for waking it.
MIN_TOKENS_PER_CORE = 32


class SharedCores:
    """The cores of one model's replicas."""

    def __init__(self, num_cores: int) -> None:
        self._num_cores = num_cores
        self._num_computing = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def share(self, num_tokens: int) -> Iterator[None]:
        """Inside the block torch's operators on this thread use this batch's share."""
        with self._lock:
            self._num_computing += 1
            num_threads = self.num_threads(num_tokens, num_computing=self._num_computing)
        # OpenMP's number and MKL's are this thread's own, so a batch that began alone goes on with all cores
        # beside the next one, until its end; both are exact with any number.
        if torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)
        try:
            yield
        finally:
            with self._lock:
                self._num_computing -= 1

    def num_threads(self, num_tokens: int, *, num_computing: int) -> int:
        """Cores for a batch of so many tokens while `num_computing` batches compute, itself included."""
        fair_share = self._num_cores // num_computing
        return max(1, min(fair_share, num_tokens // MIN_TOKENS_PER_CORE))


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Inside the block torch's operators on this thread use one core, as a replica does under load.

    What is measured so is not disturbed by whoever else uses the cores, and short texts need no more.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
