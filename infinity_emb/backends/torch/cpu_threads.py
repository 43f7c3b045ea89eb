"""Divide the cores of a CPU among the replicas of a model.

Two batches in parallel on one core each are faster than one after the other on both cores, since threads need
not wait for each other after every operator. A single batch should use all cores, so they are divided for
each batch, by the number of batches that are being computed. A small batch stays on one core: each operator
wakes the threads of the others, which takes longer than a short operator does.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from infinity_emb.backends.base import Backend
from infinity_emb.backends.probes import measure_calls_per_s, measure_rates
from infinity_emb.items import Encoded

# With fewer tokens per core, waking the core costs more than it gains.
MIN_TOKENS_PER_CORE = 32
# Until it is measured: even a short query reads all weights, which two cores may do faster than one.
MIN_TOKENS_FOR_TWO_CORES = 4
# Numbers of short texts for which one and two cores are compared at start, in ascending order.
_COMPARED_TEXTS = (1, 2, 4, 8)
# At most: an image counts as 256 tokens.
_MAX_MIN_TOKENS = 256
_MIN_GAIN = 1.05
_MAX_ROUNDS, _MIN_DURATION_S, _DEADLINE_S = 3, 0.02, 1.0

logger = logging.getLogger("infinity_emb")


class SharedCores:
    """The cores that the replicas of one model share.

    min_tokens_for_two: smaller batches are computed on one core.
    """

    def __init__(self, num_cores: int) -> None:
        self.min_tokens_for_two = MIN_TOKENS_FOR_TWO_CORES
        self.num_cores = num_cores
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
        if num_tokens < self.min_tokens_for_two:
            return 1
        fair_share = self.num_cores // num_computing
        return max(1, min(fair_share, max(2, num_tokens // MIN_TOKENS_PER_CORE)))


def choose_min_tokens(cores: SharedCores, replicas: Sequence[Backend], samples: Sequence[Encoded]) -> None:
    """Find the smallest batch that two cores compute faster than one; let smaller ones use one core.

    Measures on threads that have all used several cores, as when serving: OpenMP lets threads that wait for
    work sleep at once when there are more of them than cores, and then takes longer to wake them.
    """
    num_cores = cores.num_cores
    if num_cores == 1:
        return
    deadline_s = time.monotonic() + _DEADLINE_S
    shortest = min(samples, key=lambda sample: sample.num_tokens)
    num_slower = 0
    cores.min_tokens_for_two = 0
    try:
        with contextlib.ExitStack() as stack:
            threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in replicas]
            for thread, replica in zip(threads, replicas, strict=True):
                thread.submit(replica.launch, [shortest]).result()
            for num_texts in _COMPARED_TEXTS:
                if time.monotonic() > deadline_s:
                    break
                batch = [shortest] * num_texts
                measured = threads[0].submit(_measure_gain, cores, replicas[0], batch, deadline_s)
                if measured.result() >= _MIN_GAIN:
                    break
                num_slower += 1
    finally:
        cores.num_cores = num_cores
    # A single text may have fewer tokens than the sample has.
    compared = [shortest.num_tokens * num_texts for num_texts in _COMPARED_TEXTS]
    found = [MIN_TOKENS_FOR_TWO_CORES, *compared[1:], 2 * compared[-1]][num_slower]
    cores.min_tokens_for_two = min(found, _MAX_MIN_TOKENS)
    logger.info("batches of fewer than %d tokens are computed on one core", cores.min_tokens_for_two)


def _measure_gain(cores: SharedCores, replica: Backend, batch: Sequence[Encoded], deadline_s: float) -> float:
    """Return how many times as fast two cores compute a batch as one, and leave their number changed."""

    def measure(num_cores: int) -> float:
        cores.num_cores = num_cores
        launch = functools.partial(replica.launch, batch)
        # On a busy machine two threads get more of the cores than one, so one is timed by its own work.
        clock = time.thread_time if num_cores == 1 else time.perf_counter
        return measure_calls_per_s(launch, min_duration_s=_MIN_DURATION_S, read_clock=clock)

    candidates = {num_cores: functools.partial(measure, num_cores) for num_cores in (1, 2)}
    rates = measure_rates(candidates, max_rounds=_MAX_ROUNDS, deadline_s=deadline_s)
    return rates[2] / rates[1]


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
