"""Start and stop a model: restarts, draining, deadlines and threads."""

from __future__ import annotations

import asyncio
import threading

import pytest

from infinity_emb.backends import fake
from infinity_emb.engine.slot import DRAIN_TIMEOUT_S
from infinity_emb.errors import (
    EngineNotReady,
)
from infinity_emb.items import (
    RequestInput,
)
from tests.support.event_loop import PATIENCE_S, run
from tests.support.fake_engines import (
    assert_is_idle,
    embed,
    fake_parts,
    gated_parts,
    run_ready_tasks,
    started,
)
from tests.support.gated_backend import GatedEncoder


def is_slow(given: RequestInput) -> bool:
    return str(given.value).startswith("slow")


def test_a_model_that_is_not_started_refuses_requests() -> None:
    parts = fake_parts()

    assert not parts.slot.is_running
    assert not parts.slot.is_dead
    with pytest.raises(EngineNotReady, match="not started"):
        run(embed(parts, ["a"]))
    run(parts.slot.stop(DRAIN_TIMEOUT_S))


def test_a_running_model_cannot_be_started_again() -> None:
    async def main() -> None:
        async with started(fake_parts()) as parts:
            with pytest.raises(EngineNotReady):
                parts.slot.start()
            assert parts.slot.is_running
            await embed(parts, ["a"])

    run(main())


def test_a_model_can_be_restarted_on_another_event_loop() -> None:
    parts = fake_parts()

    async def use() -> None:
        async with started(parts):
            assert await embed(parts, ["aa", "b"]) == [2, 1]
        assert not parts.slot.is_running
        with pytest.raises(EngineNotReady):
            await embed(parts, ["a"])

    for _ in range(3):
        run(use())
    assert parts.host.pool.stats.num_items == 6


@pytest.mark.usefixtures("dies_for_good")
def test_a_crashed_model_can_be_started_again() -> None:
    parts = fake_parts("die_on=poison")

    async def main() -> None:
        async with started(parts):
            with pytest.raises(EngineNotReady):
                await embed(parts, ["poison"])
        async with started(parts):
            assert parts.slot.is_running
            assert not parts.slot.is_dead
            await embed(parts, ["fine"])

    run(main())


def test_a_model_outlives_the_event_loop_that_started_it() -> None:
    parts = fake_parts()
    parts.slot.start()
    assert run(embed(parts, ["aa"])) == [2]
    run(parts.slot.stop(DRAIN_TIMEOUT_S))


def test_stopping_finishes_waiting_requests() -> None:
    parts, backend = gated_parts(batch_size=2)

    async def main() -> None:
        parts.slot.start()
        requests = [asyncio.create_task(embed(parts, [f"text {number}", "x"])) for number in range(20)]
        await backend.wait_until_reached()
        stopping = asyncio.create_task(parts.slot.stop(DRAIN_TIMEOUT_S))
        await run_ready_tasks()
        assert not parts.slot.is_running
        with pytest.raises(EngineNotReady, match="shutting down"):
            await embed(parts, ["late"])
        backend.open()
        await stopping
        for number, request in enumerate(requests):
            assert request.done()
            assert request.result() == [len(f"text {number}"), 1]

    run(main())
    assert "late" not in backend.seen


def test_stopping_finishes_requests_that_are_still_tokenized() -> None:
    """The queue was closed at once, and what came out of the tokenizer afterwards was refused."""
    encode = GatedEncoder(fake.encode, is_slow)
    parts, backend = gated_parts(encode=encode)

    async def main() -> None:
        parts.slot.start()
        slow = asyncio.create_task(embed(parts, ["slow" + "x" * 2000]))
        await encode.wait_until_reached()
        quick = asyncio.create_task(embed(parts, ["quick"]))
        await backend.wait_until_reached()
        stopping = asyncio.create_task(parts.slot.stop(DRAIN_TIMEOUT_S))
        await run_ready_tasks()
        backend.open()
        assert await quick == [5]
        encode.open()
        await stopping
        assert await slow == [2004]

    run(main())


def test_stopping_finishes_a_request_that_was_just_accepted() -> None:
    parts = fake_parts()

    async def main() -> None:
        parts.slot.start()
        request = asyncio.create_task(embed(parts, ["a", "bb"]))
        await asyncio.sleep(0)
        await parts.slot.stop(DRAIN_TIMEOUT_S)
        assert await request == [1, 2]

    run(main())


def test_at_the_deadline_waiting_requests_fail_and_a_running_batch_gets_extra_time() -> None:
    parts, backend = gated_parts(batch_size=1, batch_grace_s=PATIENCE_S)

    async def main() -> None:
        parts.slot.start()
        on_the_device = asyncio.create_task(embed(parts, ["aa"]))
        await backend.wait_until_reached()
        waiting = asyncio.create_task(embed(parts, ["b"]))
        await run_ready_tasks()
        stopping = asyncio.create_task(parts.slot.stop(0))
        with pytest.raises(EngineNotReady, match="not finished in time"):
            await waiting
        backend.open()
        assert await on_the_device == [2]
        await stopping

    run(main())
    assert backend.seen == ["aa"]


@pytest.mark.parametrize("also_waiting", [0, 5])
def test_requests_of_a_hung_device_fail_at_the_deadline(also_waiting: int) -> None:
    """A request whose batch hung on the device was never answered."""
    parts, backend = gated_parts(batch_size=1, batch_grace_s=0)

    async def main() -> None:
        parts.slot.start()
        requests = [asyncio.create_task(embed(parts, [f"text {n}"])) for n in range(1 + also_waiting)]
        await backend.wait_until_reached()
        await parts.slot.stop(0)
        errors = await asyncio.gather(*requests, return_exceptions=True)
        assert all(isinstance(error, EngineNotReady) for error in errors)
        assert_is_idle(parts)
        with pytest.raises(EngineNotReady, match="still running"):
            parts.slot.start()
        backend.open()

    run(main())
    assert backend.seen == ["text 0"]


def test_at_the_deadline_a_request_that_is_still_tokenized_fails() -> None:
    encode = GatedEncoder(fake.encode, is_slow)
    parts, backend = gated_parts(encode=encode)

    async def main() -> None:
        parts.slot.start()
        request = asyncio.create_task(embed(parts, ["slow" + "x" * 2000]))
        await encode.wait_until_reached()
        await parts.slot.stop(0)
        encode.open()
        with pytest.raises(EngineNotReady):
            await request

    run(main())
    assert backend.seen == []


def test_after_the_deadline_queued_and_new_work_for_threads_is_refused() -> None:
    """The first was a RuntimeError of the pool, the second ran on behind the stop."""
    is_reached, is_open = threading.Event(), threading.Event()
    ran: list[int] = []

    def hold() -> None:
        is_reached.set()
        assert is_open.wait(PATIENCE_S)

    async def main() -> None:
        parts = fake_parts()
        parts.slot.start()
        async with parts.gate.request(1) as open_model:
            holding = asyncio.create_task(open_model.threads.run(hold, num_chars=1))
            waiting = asyncio.create_task(open_model.threads.run(lambda: ran.append(1), num_chars=1))
            assert await asyncio.to_thread(is_reached.wait, PATIENCE_S)
            await parts.slot.stop(0)
            with pytest.raises(EngineNotReady):
                await waiting
            with pytest.raises(EngineNotReady):
                await open_model.threads.run(lambda: ran.append(2), num_chars=1)
            is_open.set()
            await holding

    run(main())
    assert ran == []


def test_a_cancelled_stop_fails_waiting_requests() -> None:
    parts, backend = gated_parts()

    async def main() -> None:
        parts.slot.start()
        request = asyncio.create_task(embed(parts, ["a"]))
        await backend.wait_until_reached()
        stopping = asyncio.create_task(parts.slot.stop(DRAIN_TIMEOUT_S))
        await run_ready_tasks()
        stopping.cancel()
        with pytest.raises(EngineNotReady):
            await request
        backend.open()

    run(main())


def test_stopping_twice_is_harmless() -> None:
    async def main() -> None:
        parts = fake_parts()
        parts.slot.start()
        await asyncio.gather(parts.slot.stop(DRAIN_TIMEOUT_S), parts.slot.stop(DRAIN_TIMEOUT_S))
        await parts.slot.stop(DRAIN_TIMEOUT_S)

    run(main())


def test_no_thread_is_left_after_a_stop() -> None:
    async def main() -> None:
        async with started(fake_parts(device_id=(0, 1))) as parts:
            await embed(parts, ["x" * 2000])

    before = set(threading.enumerate())
    run(main())
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), thread.name
