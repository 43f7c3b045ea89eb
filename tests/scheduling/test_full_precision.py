"""Outputs that are not finite are recomputed once, in full precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from infinity_emb.errors import BackendFailed
from infinity_emb.items import Float32Array, SparseVector
from infinity_emb.types import OutputName
from tests.scheduling.pools import (
    Requests,
    each_num_in_flight,
    each_num_replicas,
    running_pool,
    running_when_queued,
)
from tests.support.gated_backend import Gate
from tests.support.scripted_backend import (
    ScriptedBackend,
    crash_on,
    drop_last_vector_on,
    fail_on,
    nan_on,
    unchanged,
)


@pytest.mark.parametrize("name", ["multivector", "sparse"])
def test_nan_is_detected_in_outputs_of_varying_length(name: OutputName) -> None:
    def insert_nan(outputs: dict[OutputName, Any]) -> dict[OutputName, Any]:
        for entry in outputs[name]:
            values = entry.values if isinstance(entry, SparseVector) else entry
            values[values == 3] = np.nan
        return outputs

    requests = Requests([1], [3], [0], [2])
    backend = ScriptedBackend(on_outputs=insert_nan, on_prepare=(gate := Gate()))
    with running_pool(backend) as pool:
        pool.queue.submit([item for index in range(4) for item in requests.items(index, name)])
        gate.open()
        requests.wait()

    assert [error is None for error in requests.errors()] == [True, False, True, True]
    assert (backend.launched, backend.launched_full) == ([[1, 3, 0, 2]], [[3]])


@each_num_in_flight
@each_num_replicas
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_item_that_is_finite_only_in_full_precision_is_recomputed_and_succeeds(
    value: float, num_in_flight: int, num_replicas: int
) -> None:
    backends = [
        ScriptedBackend(num_in_flight, on_result=nan_on(6, 13, value=value), on_full_result=unchanged)
        for _ in range(num_replicas)
    ]
    requests = Requests(*([number] for number in range(20)))
    with running_pool(*backends) as pool:
        requests.submit_to(pool)
        requests.wait()

    for number in range(20):
        requests.check_outputs(number)
    assert set(requests.num_done.values()) == {1}
    recomputed = [number for backend in backends for batch in backend.launched_full for number in batch]
    assert sorted(recomputed) == [6, 13]
    assert (pool.stats.num_items, pool.stats.num_failed_items) == (20, 0)
    assert pool.stats.num_tokens == 20 * 3
    assert pool.stats.num_split_batches == 0


def test_an_item_that_is_not_finite_in_full_precision_fails_with_its_position() -> None:
    backend = ScriptedBackend(on_result=nan_on(7))
    requests = Requests([4, 5, 7, 8], [1, 2], [3])
    with running_when_queued(requests, backend) as pool:
        requests.wait()
        assert pool.is_alive

    error = requests.errors()[0]
    assert isinstance(error, BackendFailed)
    assert error.position == 2
    assert str(error) == "input 2 gives NaN or infinity, even in float32"
    for index in (1, 2):
        requests.check_outputs(index)
    assert backend.launched == [[4, 5, 7, 8, 1, 2, 3]]
    assert backend.launched_full == [[7]], "recomputed once, alone"


def test_all_nonfinite_items_of_a_batch_are_recomputed_in_one_launch() -> None:
    """Each launch in full precision copies the whole model."""
    backend = ScriptedBackend(on_result=nan_on(1, 3, 4), on_full_result=nan_on(3))
    requests = Requests([1], [2], [3], [4])
    with running_when_queued(requests, backend) as pool:
        requests.wait()

    assert (backend.launched, backend.launched_full) == ([[1, 2, 3, 4]], [[1, 3, 4]])
    for index in (0, 1, 3):
        requests.check_outputs(index)
    assert str(requests.errors()[2]) == "input 0 gives NaN or infinity, even in float32"
    assert (pool.stats.num_items, pool.stats.num_failed_items) == (3, 1)


@pytest.mark.parametrize("where", ["on_full_launch", "on_full_result"])
def test_a_failed_launch_in_full_precision_is_retried_item_by_item(where: str) -> None:
    backend = ScriptedBackend(on_result=nan_on(1, 3, 4), **{"on_full_result": unchanged, where: fail_on(3)})
    requests = Requests([1], [2], [3], [4])
    with running_when_queued(requests, backend):
        requests.wait()

    assert backend.launched_full == [[1, 3, 4], [1], [3], [4]]
    for index in (0, 1, 3):
        requests.check_outputs(index)
    assert str(requests.errors()[2]) == "input 0 could not be computed: RuntimeError: injected failure"
    assert set(requests.num_done.values()) == {1}


def test_finite_items_complete_before_the_others_are_recomputed() -> None:
    gate = Gate()
    backend = ScriptedBackend(on_result=nan_on(1), on_full_result=unchanged, on_full_launch=gate)
    requests = Requests([1], [2], [3])
    with running_when_queued(requests, backend):
        requests.wait(1, 2)
        assert requests.num_done[0] == 0
        gate.open()
        requests.wait()

    for index in range(3):
        requests.check_outputs(index)


@pytest.mark.parametrize(
    "fault",
    [
        {"on_full_launch": fail_on(1)},
        {"on_full_result": fail_on(1)},
        {"on_full_result": drop_last_vector_on(1)},
        {"on_full_launch": fail_on(1, error=MemoryError("too large"))},
        {"on_full_result": lambda numbers, vectors: vectors[:, :1]},
    ],
)
def test_a_failed_recomputation_fails_its_item_but_not_the_thread(fault: dict[str, Any]) -> None:
    backend = ScriptedBackend(on_result=nan_on(1), **fault)
    requests = Requests([0, 1], [2], [3])
    with running_when_queued(requests, backend, max_batch_items=2) as pool:
        requests.wait()
        assert pool.is_alive

    error = requests.errors()[0]
    assert isinstance(error, BackendFailed)
    assert error.position == 1
    for index in (1, 2):
        requests.check_outputs(index)
    assert backend.launched_full == [[1]]
    assert set(requests.num_done.values()) == {1}


def test_a_crash_during_recomputation_leaves_no_request_waiting() -> None:
    backend = ScriptedBackend(on_result=nan_on(1), on_full_launch=crash_on(1))
    requests = Requests([0], [1], [2])
    with running_when_queued(requests, backend, max_batch_items=2) as pool:
        requests.wait()
        assert pool.is_ready

    requests.check_outputs(0)
    requests.check_outputs(2)
    assert isinstance(requests.errors()[1], BackendFailed)
    assert set(requests.num_done.values()) == {1}


def test_a_cancelled_item_is_not_recomputed() -> None:
    requests = Requests([1], [2])

    def disconnect(numbers: list[int], vectors: Float32Array) -> Any:
        requests.pending[0].cancel()
        return nan_on(1)(numbers, vectors)

    backend = ScriptedBackend(on_result=disconnect)
    with running_when_queued(requests, backend):
        requests.wait(1)

    requests.check_outputs(1)
    assert backend.launched_full == []
    assert requests.num_done == {1: 1}
