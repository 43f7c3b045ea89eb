"""Every accepted item ends exactly once, whatever fails while many threads submit."""

from __future__ import annotations

import random
import threading
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infinity_emb.errors import BackendFailed
from infinity_emb.items import Float32Array
from infinity_emb.scheduling.worker_pool import WorkerPool
from tests.scheduling.pools import Requests, running_pool
from tests.support.event_loop import PATIENCE_S
from tests.support.scripted_backend import (
    FAULTS,
    ScriptedBackend,
    crash_on,
    drop_last_vector_on,
    fail_on,
    nan_on,
)

KINDS = ("fine", "NaN in half", *FAULTS)
SUCCEEDING = ("fine", "NaN in half")

no_deadline = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@no_deadline
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=60),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=60),
    num_replicas=st.integers(1, 2),
    num_in_flight=st.integers(1, 2),
    shares_device=st.booleans(),
    max_batch_items=st.integers(1, 8),
    num_threads=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_every_item_ends_once_whatever_fails(
    kinds: list[str],
    sizes: list[int],
    num_replicas: int,
    num_in_flight: int,
    shares_device: bool,
    max_batch_items: int,
    num_threads: int,
    seed: int,
) -> None:
    bad = {kind: [number for number, other in enumerate(kinds) if other == kind] for kind in KINDS}
    requests = Requests(*group(list(range(len(kinds))), sizes))
    with running_pool(
        *(make_faulty_backend(bad, num_in_flight, shares_device) for _ in range(num_replicas)),
        max_batch_items=max_batch_items,
    ) as pool:
        submit_from_threads(pool, requests, num_threads, seed)
        requests.wait()
        assert pool.is_alive

    assert set(requests.num_done.values()) == {1}
    for index, numbers in enumerate(requests.numbers):
        if all(kinds[number] in SUCCEEDING for number in numbers):
            requests.check_outputs(index)
        else:
            error = requests.errors()[index]
            assert isinstance(error, BackendFailed)
            assert error.position is not None
            assert kinds[numbers[error.position]] not in SUCCEEDING
    assert pool.stats.num_items + pool.stats.num_failed_items <= len(kinds)
    if all(len(numbers) == 1 for numbers in requests.numbers):
        num_succeeded = sum(kind in SUCCEEDING for kind in kinds)
        assert pool.stats.num_items == num_succeeded
        assert pool.stats.num_failed_items == len(kinds) - num_succeeded


@no_deadline
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=60),
    crashing_number=st.integers(0, 59),
    crashes_at_launch=st.booleans(),
    num_replicas=st.integers(1, 2),
    num_in_flight=st.integers(1, 2),
    max_batch_items=st.integers(1, 8),
    num_threads=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_every_item_ends_once_although_a_thread_crashes_and_restarts(
    sizes: list[int],
    crashing_number: int,
    crashes_at_launch: bool,
    num_replicas: int,
    num_in_flight: int,
    max_batch_items: int,
    num_threads: int,
    seed: int,
) -> None:
    where = "on_launch" if crashes_at_launch else "on_result"
    crash = crash_on(crashing_number)
    requests = Requests(*group(list(range(60)), sizes))
    with running_pool(
        *(ScriptedBackend(num_in_flight, **{where: crash}) for _ in range(num_replicas)),
        max_batch_items=max_batch_items,
    ) as pool:
        submit_from_threads(pool, requests, num_threads, seed)
        requests.wait()
        assert pool.is_alive

    assert set(requests.num_done.values()) == {1}
    for index, numbers in enumerate(requests.numbers):
        if crashing_number in numbers:
            error = requests.errors()[index]
            assert isinstance(error, BackendFailed)
            assert error.position == numbers.index(crashing_number), "only the item to blame fails"
        else:
            requests.check_outputs(index)
    assert pool.stats.num_failed_items == 1


def group(numbers: list[int], sizes: list[int]) -> list[list[int]]:
    """Group numbers into requests of these sizes, repeated as often as needed."""
    requests = []
    for index in range(len(numbers)):
        size = sizes[index % len(sizes)]
        requests.append(numbers[:size])
        numbers = numbers[size:]
    return [request for request in requests if request]


def make_faulty_backend(
    bad: dict[str, list[int]], num_in_flight: int, shares_device: bool
) -> ScriptedBackend:
    def full_result(numbers: list[int], vectors: Float32Array) -> Any:
        vectors = nan_on(*bad["NaN"])(numbers, vectors)
        vectors = fail_on(*bad["result"])(numbers, vectors)
        return drop_last_vector_on(*bad["number of vectors"])(numbers, vectors)

    def result(numbers: list[int], vectors: Float32Array) -> Any:
        return full_result(numbers, nan_on(*bad["NaN in half"])(numbers, vectors))

    return ScriptedBackend(
        num_in_flight,
        shares_device,
        on_launch=fail_on(*bad["launch"]),
        on_result=result,
        on_full_result=full_result,
    )


def submit_from_threads(pool: WorkerPool, requests: Requests, num_threads: int, seed: int) -> None:
    """Submit the requests in a random order from several threads."""
    indices = list(range(len(requests.pending)))
    random.Random(seed).shuffle(indices)

    def submit(own_indices: list[int]) -> None:
        for index in own_indices:
            pool.queue.submit(requests.items(index))

    threads = [
        threading.Thread(target=submit, args=(indices[number::num_threads],)) for number in range(num_threads)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
