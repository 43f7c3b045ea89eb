"""Worker pools over scripted backends, and requests to them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from infinity_emb.scheduling.requests import Item, PendingRequest
from infinity_emb.scheduling.worker_pool import WorkerPool
from infinity_emb.types import OutputName
from tests.support.event_loop import PATIENCE_S
from tests.support.gated_backend import Gate
from tests.support.scripted_backend import FAULTS, ScriptedBackend, encode_number

each_fault = pytest.mark.parametrize("fault", FAULTS)
each_num_in_flight = pytest.mark.parametrize("num_in_flight", [1, 2])
each_num_replicas = pytest.mark.parametrize("num_replicas", [1, 2])


class Requests:
    """Requests of the given numbers, and how often each was announced as done."""

    def __init__(self, *requests: Sequence[int]) -> None:
        self.numbers = [list(numbers) for numbers in requests]
        self.pending = [PendingRequest(len(numbers), self._note) for numbers in requests]
        self.num_done: Counter[int] = Counter()
        self._changed = threading.Condition()

    def _note(self, request: PendingRequest) -> None:
        with self._changed:
            self.num_done[self.pending.index(request)] += 1
            self._changed.notify_all()

    def items(self, index: int = 0, *outputs: OutputName) -> list[Item]:
        """Make the items of one request."""
        return [
            Item(encode_number(number, *outputs, position=position), self.pending[index], position)
            for position, number in enumerate(self.numbers[index])
        ]

    def submit_to(self, pool: WorkerPool) -> None:
        """Submit the items of all requests at once."""
        pool.queue.submit([item for index in range(len(self.pending)) for item in self.items(index)])

    def wait(self, *indices: int) -> None:
        """Wait until these requests have ended, or all."""
        wanted = indices or range(len(self.pending))
        with self._changed:
            have_ended = self._changed.wait_for(
                lambda: all(self.num_done[index] for index in wanted), PATIENCE_S
            )
        assert have_ended, f"only {sorted(self.num_done)} of {len(self.pending)} requests ended"

    def check_outputs(self, index: int = 0) -> None:
        """Assert that a request succeeded with the vectors of its numbers, in order."""
        request = self.pending[index]
        assert request.error is None
        assert request.outputs.keys() == {"dense"}
        vectors = request.outputs["dense"]
        assert vectors.dtype == np.float32
        assert vectors.tolist() == [[number, number] for number in self.numbers[index]]

    def errors(self) -> list[Exception | None]:
        return [request.error for request in self.pending]


def make_pool(*backends: ScriptedBackend, **options: Any) -> WorkerPool:
    """Make a pool whose batches are large and whose threads restart quickly, unless options say otherwise."""
    defaults = {"max_batch_tokens": 1_000_000, "max_batch_items": 1000, "first_restart_pause_s": 0.0001}
    return WorkerPool(backends, **{**defaults, **options})


def close_pool(pool: WorkerPool) -> None:
    """Close a pool and wait until its threads have ended."""
    is_closed = threading.Event()
    pool.close(is_closed.set)
    assert is_closed.wait(PATIENCE_S), "the worker threads did not end"


@contextmanager
def running_pool(*backends: ScriptedBackend, **options: Any) -> Iterator[WorkerPool]:
    """Start a pool, and close it at the end of the block."""
    pool = make_pool(*backends, **options)
    pool.start()
    try:
        yield pool
    finally:
        close_pool(pool)


@contextmanager
def running_when_queued(
    requests: Requests, *backends: ScriptedBackend, **options: Any
) -> Iterator[WorkerPool]:
    """Start a pool whose threads begin only when all requests are queued."""
    gate = Gate()
    for backend in backends:
        backend.on_prepare = gate
    with running_pool(*backends, **options) as pool:
        requests.submit_to(pool)
        gate.open()
        yield pool


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll a condition for which there is no event."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "the condition did not become true in time"
        time.sleep(0.001)
