"""Starting, sharing and closing: what a pool does while nothing fails."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from infinity_emb.concurrency import lower_thread_priority
from infinity_emb.errors import EngineNotReady
from infinity_emb.items import Float32Array
from infinity_emb.scheduling.batch_queue import MIN_SHARED_TOKENS
from tests.scheduling.pools import (
    Requests,
    close_pool,
    each_num_in_flight,
    each_num_replicas,
    make_pool,
    running_pool,
    running_when_queued,
    wait_until,
)
from tests.support.event_loop import PATIENCE_S
from tests.support.gated_backend import Gate
from tests.support.scripted_backend import ScriptedBackend


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
@pytest.mark.parametrize(("num_in_flight", "is_lower"), [(1, True), (2, False)])
def test_a_thread_that_computes_itself_has_a_lower_priority(num_in_flight: int, is_lower: bool) -> None:
    """Threads that wait for a device launch batches, for which it would otherwise wait."""
    niceness: list[int] = []

    def note_niceness(_: object) -> None:
        niceness.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    def lower_and_note() -> None:
        lower_thread_priority()
        note_niceness(None)

    trial = threading.Thread(target=lower_and_note)
    trial.start()
    trial.join()
    own, lower = os.getpriority(os.PRIO_PROCESS, 0), niceness.pop()
    if lower == own:
        pytest.skip("threads cannot be given a lower priority here")
    requests = Requests([1])
    with running_pool(ScriptedBackend(num_in_flight, on_launch=note_niceness)) as pool:
        requests.submit_to(pool)
        requests.wait()

    assert niceness == [lower if is_lower else own]


def test_admission_reads_what_was_computed_and_how_many_batches_can_be_in_flight() -> None:
    requests = Requests([1, 2], [3])
    with running_pool(ScriptedBackend(2), ScriptedBackend(1)) as pool:
        requests.submit_to(pool)
        requests.wait()
        progress = pool.progress
    assert (progress.num_items, progress.num_tokens, progress.num_parallel) == (3, 9, 3)
    assert progress.compute_s > 0
    wait_until(pool.release_backends)
    assert pool.progress == progress, "the speed stays known while the model is unloaded"
    pool.start([ScriptedBackend(1)])
    assert pool.progress.num_parallel == 1
    close_pool(pool)


@each_num_in_flight
@each_num_replicas
def test_closing_finishes_accepted_items_and_refuses_new_ones(num_in_flight: int, num_replicas: int) -> None:
    gate = Gate()
    requests = Requests(*([number] for number in range(30)))
    pool = make_pool(
        *(ScriptedBackend(num_in_flight, on_launch=gate) for _ in range(num_replicas)), max_batch_items=4
    )
    pool.start()
    requests.submit_to(pool)
    is_closed = threading.Event()
    pool.close(is_closed.set)

    with pytest.raises(EngineNotReady, match="shutting down"):
        pool.queue.submit(Requests([99]).items())
    assert not is_closed.is_set()
    gate.open()
    requests.wait()
    assert is_closed.wait(PATIENCE_S)
    for index in range(30):
        requests.check_outputs(index)
    assert pool.fail_all() == 0


@each_num_in_flight
@each_num_replicas
@pytest.mark.parametrize("where", ["on_launch", "on_result"])
def test_items_of_a_hung_device_fail_at_the_deadline(
    num_in_flight: int, num_replicas: int, where: str
) -> None:
    """Launched items once neither completed nor failed, and their requests waited forever."""
    gates = [Gate() for _ in range(num_replicas)]

    def hang(gate: Gate) -> Callable[..., Any]:
        def hold(numbers: list[int], vectors: Float32Array | None = None) -> Any:
            gate()
            return vectors

        return hold

    pool = make_pool(
        *(ScriptedBackend(num_in_flight, **{where: hang(gate)}) for gate in gates), max_batch_items=4
    )
    requests = Requests(*([number] for number in range(30)))
    pool.start()
    requests.submit_to(pool)
    for gate in gates:
        gate.block_until_reached()
    is_closed = threading.Event()
    pool.close(is_closed.set)

    assert pool.fail_all() == 30
    requests.wait()
    assert all(isinstance(error, EngineNotReady) for error in requests.errors())
    assert pool.fail_all() == 0
    assert not is_closed.is_set()
    for gate in gates:
        gate.open()
    assert is_closed.wait(PATIENCE_S)
    assert set(requests.num_done.values()) == {1}, "an output that arrives too late is dropped"
    assert (pool.stats.num_items, pool.stats.num_failed_items) == (0, 30)


def test_a_closed_pool_can_be_started_again() -> None:
    backend = ScriptedBackend()
    pool = make_pool(backend)
    for number in range(3):
        requests = Requests([number])
        pool.start()
        requests.submit_to(pool)
        requests.wait()
        requests.check_outputs()
        close_pool(pool)

    assert pool.stats.num_items == 3


def test_a_pool_does_not_start_while_a_thread_of_it_still_runs() -> None:
    """Two threads must never use one backend."""
    gate = Gate()
    requests = Requests([1])
    pool = make_pool(ScriptedBackend(on_launch=gate))
    pool.start()
    requests.submit_to(pool)
    gate.block_until_reached()
    pool.fail_all()

    with pytest.raises(EngineNotReady, match="still running"):
        pool.start()
    gate.open()
    close_pool(pool)
    pool.start()
    close_pool(pool)


def test_items_are_refused_before_the_start() -> None:
    with pytest.raises(EngineNotReady, match="not started"):
        make_pool(ScriptedBackend()).queue.submit(Requests([1]).items())


def test_idle_replicas_share_the_queue_and_each_is_used_by_one_thread() -> None:
    both_compute = threading.Barrier(2)
    backends = [ScriptedBackend(on_launch=lambda numbers: both_compute.wait(PATIENCE_S)) for _ in range(2)]
    requests = Requests(*([number] for number in range(1000)))
    with running_pool(*backends) as pool:
        wait_until(lambda: pool.queue.num_idle_replicas == 2)
        requests.submit_to(pool)
        requests.wait()

    assert [[len(batch) for batch in backend.launched] for backend in backends] == [[500], [500]]
    assert [len(backend.threads) for backend in backends] == [1, 1]


def test_on_a_shared_device_a_few_items_wait_for_the_running_batch() -> None:
    """They would slow that batch down more than they gain."""
    gate = Gate()
    backends = [ScriptedBackend(shares_device=True, on_launch=gate) for _ in range(2)]
    requests = Requests(list(range(10)), [99])
    with running_pool(*backends) as pool:
        pool.queue.submit(requests.items(0))
        gate.block_until_reached()
        pool.queue.submit(requests.items(1))
        wait_until(lambda: pool.queue.num_idle_replicas == 1)
        assert len(pool.queue) == 1
        gate.open()
        requests.wait()

    assert sorted(backends[0].launched + backends[1].launched) == [list(range(10)), [99]]
    requests.check_outputs(1)


def test_on_a_shared_device_large_batches_run_concurrently() -> None:
    both_compute = threading.Barrier(2)
    backends = [
        ScriptedBackend(shares_device=True, on_launch=lambda numbers: both_compute.wait(PATIENCE_S))
        for _ in range(2)
    ]
    many = list(range(MIN_SHARED_TOKENS))
    requests = Requests(many, many)
    with running_pool(*backends, max_batch_items=len(many)) as pool:
        requests.submit_to(pool)
        requests.wait()


def test_with_two_in_flight_a_batch_is_launched_before_the_previous_one_is_collected() -> None:
    order: list[tuple[str, list[int]]] = []
    backend = ScriptedBackend(
        2,
        on_launch=lambda numbers: order.append(("launch", numbers)),
        on_result=lambda numbers, vectors: (order.append(("collect", numbers)), vectors)[1],  # type: ignore[func-returns-value]
    )
    requests = Requests([1], [2], [3])
    with running_when_queued(requests, backend, max_batch_items=1):
        requests.wait()

    assert order == [
        ("launch", [1]),
        ("launch", [2]),
        ("collect", [1]),
        ("launch", [3]),
        ("collect", [2]),
        ("collect", [3]),
    ]


def test_a_cancelled_request_is_not_announced_and_its_queued_items_are_not_computed() -> None:
    gate = Gate()
    backend = ScriptedBackend(on_launch=gate)
    requests = Requests([1, 2], [3], [4])
    with running_pool(backend, max_batch_items=2) as pool:
        pool.queue.submit(requests.items(0))
        gate.block_until_reached()
        pool.queue.submit(requests.items(1) + requests.items(2))
        requests.pending[0].cancel()
        requests.pending[1].cancel()
        gate.open()
        requests.wait(2)

    requests.check_outputs(2)
    assert backend.launched == [[1, 2], [4]]
    assert requests.num_done == {2: 1}
    assert pool.stats.num_failed_items == 0


def test_cancelled_items_do_not_count_as_failed_at_the_deadline() -> None:
    gate = Gate()
    requests = Requests([1], [2], [3])
    with running_pool(ScriptedBackend(on_launch=gate), max_batch_items=1) as pool:
        requests.submit_to(pool)
        gate.block_until_reached()
        requests.pending[2].cancel()
        assert pool.fail_all() == 2
        gate.open()

    assert requests.num_done == {0: 1, 1: 1}
