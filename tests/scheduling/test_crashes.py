"""A worker thread that crashes restarts; one that keeps crashing, or hangs, fails the pool."""

from __future__ import annotations

import threading

import pytest

from infinity_emb.errors import BackendFailed, EngineNotReady
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
from tests.support.scripted_backend import FAULTS, ScriptedBackend, crash_on


@each_num_in_flight
@each_num_replicas
@pytest.mark.parametrize("where", ["on_launch", "on_result"])
def test_a_thread_that_keeps_crashing_fails_all_queued_and_launched_items(
    num_in_flight: int, num_replicas: int, where: str
) -> None:
    """The second batch in flight was once forgotten, and its request waited forever."""
    backends = [ScriptedBackend(num_in_flight, **{where: crash_on(*range(100))}) for _ in range(num_replicas)]
    requests = Requests(*([number] for number in range(40)))
    with running_when_queued(requests, *backends, max_batch_items=4) as pool:
        requests.wait()
        assert not pool.is_alive

    errors = requests.errors()
    assert all(isinstance(error, (EngineNotReady, BackendFailed)) for error in errors)
    assert all("SystemExit('injected crash')" in str(error) for error in errors)
    assert any(isinstance(error, EngineNotReady) for error in errors), "the thread gives up in the end"
    assert set(requests.num_done.values()) == {1}
    assert (pool.stats.num_failed_items, pool.stats.num_items) == (40, 0)


@each_num_in_flight
@pytest.mark.parametrize("where", ["on_launch", "on_result"])
def test_an_item_that_crashes_the_thread_fails_alone_and_the_thread_restarts(
    num_in_flight: int, where: str
) -> None:
    requests = Requests([1, 2], [3], [13], [4])
    backend = ScriptedBackend(num_in_flight, **{where: crash_on(13)})
    with running_when_queued(requests, backend) as pool:
        requests.wait()
        assert pool.is_ready

    for index in (0, 1, 3):
        requests.check_outputs(index)
    error = requests.errors()[2]
    assert isinstance(error, BackendFailed)
    assert "injected crash" in str(error)
    assert pool.stats.num_restarts == 2  # in a batch, and alone
    assert (pool.stats.num_items, pool.stats.num_failed_items) == (4, 1)


def test_a_restarted_thread_computes_queued_and_new_items() -> None:
    has_crashed = threading.Event()

    def crash_once(numbers: list[int]) -> None:
        if not has_crashed.is_set():
            has_crashed.set()
            raise SystemExit("injected crash")

    requests = Requests([1, 2, 3], [4])
    with running_when_queued(requests, ScriptedBackend(on_launch=crash_once), max_batch_items=2) as pool:
        requests.wait()
        later = Requests([5])
        later.submit_to(pool)
        later.wait()

    for index in (0, 1):
        requests.check_outputs(index)
    later.check_outputs()
    assert (pool.stats.num_restarts, pool.stats.num_retried_items) == (1, 2)


def test_a_restarting_pool_is_not_ready_but_accepts_items() -> None:
    requests = Requests([1], [2])
    pool = make_pool(ScriptedBackend(on_launch=crash_on(1)), first_restart_pause_s=PATIENCE_S)
    pool.start()
    try:
        assert pool.is_ready
        pool.queue.submit(requests.items(0))
        requests.wait(0)
        wait_until(lambda: not pool.is_ready)
        assert pool.is_alive
        pool.queue.submit(requests.items(1))
    finally:
        close_pool(pool)  # does not wait for the end of the pause

    requests.check_outputs(1)


def test_restart_pauses_double_until_a_batch_succeeds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    crash = crash_on(*range(1, 4))
    requests = Requests([1], [2], [3], [4], [1])
    with running_when_queued(
        requests, ScriptedBackend(on_launch=crash), max_batch_items=1, first_restart_pause_s=0.001
    ):
        requests.wait()

    pauses = [record.args[1] for record in caplog.records if "restarting in" in record.msg]  # type: ignore[index]
    assert pauses == [0.001, 0.002, 0.004, 0.001]


def test_a_pool_that_gave_up_refuses_items_with_the_reason_and_reports_it_once() -> None:
    reports: list[None] = []
    numbers = range(6)
    requests = Requests(*([number] for number in numbers), [99])
    backend = ScriptedBackend(on_launch=crash_on(*numbers))
    pool = make_pool(
        backend, max_batch_items=1, max_consecutive_crashes=5, on_give_up=lambda: reports.append(None)
    )
    pool.start()
    try:
        for number in numbers:
            pool.queue.submit(requests.items(number))
        requests.wait(*numbers)
        assert not pool.is_alive
        with pytest.raises(EngineNotReady, match="injected crash"):
            pool.queue.submit(requests.items(len(numbers)))
    finally:
        close_pool(pool)
    assert len(reports) == 1


def test_a_hung_batch_fails_the_pool_and_leaves_no_request_waiting() -> None:
    has_given_up = threading.Event()
    gate = Gate()
    requests = Requests([1], [2])
    pool = make_pool(
        ScriptedBackend(on_launch=gate),
        max_batch_items=1,
        batch_timeout_s=0.05,
        on_give_up=has_given_up.set,
    )
    pool.start()
    try:
        requests.submit_to(pool)
        requests.wait()
        assert has_given_up.wait(PATIENCE_S)
        assert not pool.is_alive
        assert all("took over 0.05 s" in str(error) for error in requests.errors())
        with pytest.raises(EngineNotReady):
            pool.queue.submit(requests.items(0))
    finally:
        gate.open()
        close_pool(pool)
    assert set(requests.num_done.values()) == {1}, "outputs that arrive too late are dropped"


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_an_idle_pool_is_not_considered_hung(fault: str | None) -> None:
    """Neither after a batch that succeeded nor after one that failed."""
    requests = Requests([1])
    backend = ScriptedBackend(**FAULTS[fault](1)) if fault else ScriptedBackend()
    pool = make_pool(backend, max_batch_items=1, batch_timeout_s=0.1)
    pool.start()
    try:
        requests.submit_to(pool)
        requests.wait()
        assert not threading.Event().wait(0.3), "three times as long as a batch may take"
        assert pool.is_alive
    finally:
        close_pool(pool)


def test_a_thread_that_cannot_be_prepared_fails_the_queued_items() -> None:
    gate = Gate()

    def prepare() -> None:
        gate()
        raise RuntimeError("no such device")

    requests = Requests([1])
    with running_pool(ScriptedBackend(on_prepare=prepare)) as pool:
        requests.submit_to(pool)
        gate.open()
        requests.wait()

    assert isinstance(requests.errors()[0], EngineNotReady)
    assert "no such device" in str(requests.errors()[0])


def test_when_one_replica_gives_up_the_other_completes_its_batch() -> None:
    """Giving up fails the queued items and those of the crashed replica, and no others."""
    gate = Gate()
    requests = Requests([1], [2], [3])
    slow = ScriptedBackend(on_launch=gate)
    crashing = ScriptedBackend(on_launch=crash_on(2))
    crashing_may_start = Gate()
    crashing.on_prepare = crashing_may_start
    with running_pool(slow, crashing, max_batch_items=1, max_consecutive_crashes=0) as pool:
        pool.queue.submit(requests.items(0))
        gate.block_until_reached()
        pool.queue.submit(requests.items(1) + requests.items(2))
        crashing_may_start.open()
        requests.wait(1, 2)
        assert requests.num_done[0] == 0
        gate.open()
        requests.wait(0)
        with pytest.raises(EngineNotReady):
            pool.queue.submit(requests.items(0))

    requests.check_outputs(0)
    assert all(isinstance(error, EngineNotReady) for error in requests.errors()[1:])
    assert (slow.launched, crashing.launched) == ([[1]], [[2]])


def test_a_pool_whose_thread_crashed_can_be_started_again() -> None:
    backend = ScriptedBackend(on_launch=crash_on(1))
    pool = make_pool(backend)
    for number in (1, 2):
        requests = Requests([number])
        pool.start()
        requests.submit_to(pool)
        requests.wait()
        close_pool(pool)

    requests.check_outputs()
