"""A failed batch is computed in halves, so that only the inputs to blame fail."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import pytest

from infinity_emb.errors import BackendFailed, DeviceOutOfMemory, InputTooLong
from infinity_emb.items import Encoded, Float32Array
from tests.scheduling.pools import (
    Requests,
    each_fault,
    each_num_in_flight,
    each_num_replicas,
    running_pool,
    running_when_queued,
)
from tests.support.scripted_backend import FAULTS, ScriptedBackend, ScriptedBatch, fail_on, nan_on, unchanged


class Tensor:
    """Memory that a batch holds on its device."""


@each_fault
@each_num_in_flight
@each_num_replicas
def test_a_failing_item_is_isolated_by_halving_and_the_others_succeed(
    fault: str, num_in_flight: int, num_replicas: int
) -> None:
    backends = [ScriptedBackend(num_in_flight, **FAULTS[fault](6, 13)) for _ in range(num_replicas)]
    requests = Requests(*([number] for number in range(20)))
    with running_pool(*backends) as pool:
        requests.submit_to(pool)
        requests.wait()

    for number in range(20):
        if number in (6, 13):
            assert isinstance(requests.errors()[number], BackendFailed)
        else:
            requests.check_outputs(number)
    assert set(requests.num_done.values()) == {1}
    assert (pool.stats.num_items, pool.stats.num_failed_items) == (18, 2)
    assert pool.stats.num_tokens == 18 * 3


def test_an_item_is_not_blamed_before_it_failed_alone() -> None:
    """The only item of a failed batch that was not cancelled once failed without a retry."""
    requests = Requests([1], [2])

    def fail_while_another_disconnects(numbers: list[int]) -> None:
        requests.pending[0].cancel()
        fail_on(1)(numbers)

    backend = ScriptedBackend(on_launch=fail_while_another_disconnects)
    with running_when_queued(requests, backend):
        requests.wait(1)

    requests.check_outputs(1)
    assert backend.launched == [[1, 2], [2]]


def test_one_failing_item_fails_its_whole_request_once() -> None:
    requests = Requests([1, 2, 3, 4], [5, 6])
    with running_pool(ScriptedBackend(on_launch=fail_on(2, 3))) as pool:
        requests.submit_to(pool)
        requests.wait()

    assert isinstance(requests.errors()[0], BackendFailed)
    requests.check_outputs(1)
    assert set(requests.num_done.values()) == {1}


def test_the_error_names_the_exception_of_the_backend() -> None:
    requests = Requests([1])
    with running_pool(ScriptedBackend(on_launch=fail_on(1, error=MemoryError("too large")))) as pool:
        requests.submit_to(pool)
        requests.wait()

    error = requests.errors()[0]
    assert str(error) == "input 0 could not be computed: MemoryError: too large"
    assert isinstance(error, BackendFailed)
    assert isinstance(error.__cause__, MemoryError)


@pytest.mark.parametrize("where", ["on_launch", "on_result"])
@pytest.mark.parametrize("full_precision", [False, True])
def test_memory_of_a_failed_batch_is_released_before_the_retry(where: str, full_precision: bool) -> None:
    """The traceback of an out-of-memory error kept the tensors of the failed batch alive during its retry."""
    tensors: list[weakref.ref[Tensor]] = []
    num_alive: list[int] = []

    def run_out_of_memory(numbers: list[int], vectors: Float32Array | None = None) -> Any:
        num_alive.append(sum(tensor() is not None for tensor in tensors))
        try:
            tensor = Tensor()
            tensors.append(weakref.ref(tensor))
            fail_on(1, error=MemoryError("too large"))(numbers)
        except MemoryError as exc:
            raise RuntimeError("out of memory") from exc
        return vectors

    broken: dict[str, Any] = {
        where.replace("on_", "on_full_") if full_precision else where: run_out_of_memory
    }
    nonfinite = {"on_result": nan_on(0, 1, 2, 3), "on_full_result": unchanged} if full_precision else {}
    requests = Requests([0], [1], [2], [3])
    with running_when_queued(requests, ScriptedBackend(**{**nonfinite, **broken})):
        requests.wait()

    assert len(num_alive) == 5
    assert set(num_alive) == {0}
    assert isinstance(requests.errors()[1], BackendFailed)
    assert all(tensor() is None for tensor in tensors)


@pytest.mark.parametrize(
    "fault",
    [
        {"on_result": fail_on(1), "on_full_result": unchanged},
        {"on_result": nan_on(0, 1, 2, 3), "on_full_result": fail_on(1)},
    ],
)
def test_the_handle_of_a_failed_batch_is_released_before_the_retry(fault: dict[str, Any]) -> None:
    """The handle holds tensors too."""
    handles: list[weakref.ref[ScriptedBatch]] = []
    num_alive: list[int] = []

    class WatchedBackend(ScriptedBackend):
        def launch(self, batch: Sequence[Encoded], *, full_precision: bool = False) -> ScriptedBatch:
            num_alive.append(sum(handle() is not None for handle in handles))
            handle = super().launch(batch, full_precision=full_precision)
            handles.append(weakref.ref(handle))
            return handle

    requests = Requests([0], [1], [2], [3])
    with running_when_queued(requests, WatchedBackend(**fault)):
        requests.wait()

    assert len(num_alive) >= 5
    assert set(num_alive) == {0}


def test_an_error_of_this_package_keeps_its_type_and_names_the_input() -> None:
    error = InputTooLong("is too long")
    requests = Requests([1])
    with running_pool(ScriptedBackend(on_launch=fail_on(1, error=error))) as pool:
        requests.submit_to(pool)
        requests.wait()

    (found,) = requests.errors()
    assert isinstance(found, InputTooLong)
    assert str(found) == "input 0 is too long"


def test_an_error_names_the_position_in_the_request_whatever_the_batch() -> None:
    requests = Requests([0, 1, 2], [3, 4, 5, 6])
    with running_pool(ScriptedBackend(on_launch=fail_on(2, 4)), max_batch_items=2) as pool:
        requests.submit_to(pool)
        requests.wait()

    assert [error.position for error in requests.errors() if isinstance(error, BackendFailed)] == [2, 1]


@pytest.mark.parametrize("where", ["on_launch", "on_result"])
@pytest.mark.parametrize("error", [DeviceOutOfMemory("is too large"), MemoryError()])
def test_a_batch_that_runs_out_of_memory_is_computed_in_smaller_ones(where: str, error: Exception) -> None:
    def check(numbers: list[int], vectors: Float32Array | None = None) -> Any:
        if len(numbers) > 4:
            raise error
        return vectors

    requests = Requests(list(range(40)), list(range(40)))
    backend = ScriptedBackend(**{where: check})
    with running_when_queued(requests, backend) as pool:
        requests.wait()

    for index in (0, 1):
        requests.check_outputs(index)
    assert backend.num_freed == pool.stats.num_out_of_memory >= 1
    assert pool.stats.num_failed_items == 0


def test_an_item_that_does_not_fit_alone_fails_with_its_position() -> None:
    def check(numbers: list[int]) -> None:
        if 7 in numbers:
            raise DeviceOutOfMemory("does not fit into the device's memory")

    requests = Requests([5, 6, 7, 8])
    with running_when_queued(requests, ScriptedBackend(on_launch=check)):
        requests.wait()

    assert str(requests.errors()[0]) == "input 2 does not fit into the device's memory"


def test_the_queued_items_of_a_failed_request_are_skipped() -> None:
    backend = ScriptedBackend(on_launch=fail_on(1))
    requests = Requests([1, 2, 3], [4])
    with running_when_queued(requests, backend, max_batch_items=1):
        requests.wait()

    assert backend.launched == [[1], [4]]
