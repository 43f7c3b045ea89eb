"""Admit requests: room in the queue, deadlines, token budgets and fairness."""

from __future__ import annotations

import asyncio

import pytest

from infinity_emb.engine.slot import DRAIN_TIMEOUT_S
from infinity_emb.errors import (
    BadInput,
    DeadlineExceeded,
    Overloaded,
)
from infinity_emb.scheduling.request_context import request_options
from tests.support.event_loop import PATIENCE_S, run
from tests.support.fake_engines import embed, fake_parts, gated_parts, run_ready_tasks, started


def test_a_request_that_does_not_fit_into_the_queue_is_refused_as_a_whole() -> None:
    parts, backend = gated_parts(max_queue_items=3)

    async def main() -> None:
        async with started(parts):
            waiting = asyncio.create_task(embed(parts, ["a", "a"]))
            await backend.wait_until_reached()
            assert not parts.gate.admission.is_full()
            with pytest.raises(Overloaded, match="2 of 3 inputs"):
                await embed(parts, ["b", "c"])
            also_waiting = asyncio.create_task(embed(parts, ["d"]))
            await run_ready_tasks()
            assert parts.gate.admission.is_full()
            with pytest.raises(Overloaded):
                await embed(parts, ["e"])
            assert parts.gate.num_requests == 2
            backend.open()
            await asyncio.gather(waiting, also_waiting)
            assert not parts.gate.admission.is_full()
            await embed(parts, ["b", "c", "e"])

    run(main())
    assert backend.seen == ["a", "d", "b", "c", "e"]


def test_a_request_that_could_never_fit_is_bad_input() -> None:
    async def main() -> None:
        async with started(fake_parts(max_queue_items=3)) as parts:
            with pytest.raises(BadInput, match="4 inputs, the queue holds at most 3"):
                await embed(parts, ["a"] * 4)

    run(main())


def test_a_request_is_refused_when_too_many_tokens_wait() -> None:
    parts, backend = gated_parts(max_queue_tokens=10, batch_size=1)

    async def main() -> None:
        async with started(parts):
            requests = [asyncio.create_task(embed(parts, ["on the device"]))]
            await backend.wait_until_reached()
            requests.append(asyncio.create_task(embed(parts, ["ten tokens"])))
            await run_ready_tasks()
            assert parts.host.pool.queue.num_tokens == 10
            with pytest.raises(Overloaded):
                await embed(parts, ["a"])
            backend.open()
            await asyncio.gather(*requests)
            await embed(parts, ["a"])

    run(main())


def test_the_status_reports_how_full_the_queue_is() -> None:
    parts, backend = gated_parts(max_queue_items=8, batch_size=1)

    async def main() -> None:
        async with started(parts):
            request = asyncio.create_task(embed(parts, ["a", "b", "c"]))
            await backend.wait_until_reached()
            status = parts.take_status()
            assert (status.queue_fraction, status.num_waiting_items, status.num_requests) == (2 / 8, 2, 1)
            backend.open()
            await request

    run(main())


def test_a_request_can_grow_while_the_model_stops() -> None:
    async def main() -> None:
        parts = fake_parts(max_queue_items=5)
        parts.slot.start()
        async with parts.gate.request(2):
            stopping = asyncio.create_task(parts.slot.stop(DRAIN_TIMEOUT_S))
            await run_ready_tasks()
            with parts.gate.grow(2, 5):
                assert parts.gate.admission.num_accepted_items == 5
                with parts.gate.grow(1, 1):
                    pass
                with pytest.raises(Overloaded), parts.gate.grow(1, 2):
                    pass
            with pytest.raises(BadInput, match="6 inputs, the queue holds at most 5"), parts.gate.grow(2, 6):
                pass
            assert parts.gate.admission.num_accepted_items == 2
        await stopping

    run(main())


@pytest.mark.parametrize("is_option", [True, False])
def test_a_request_that_times_out_is_dropped_and_frees_its_room(is_option: bool) -> None:
    parts, backend = gated_parts(batch_size=1, request_timeout_s=1 if is_option else 0)

    async def main() -> None:
        async with started(parts):
            first = asyncio.create_task(embed(parts, ["computed too late"]))
            await backend.wait_until_reached()
            with request_options(timeout_s=None if is_option else 0.05), pytest.raises(DeadlineExceeded):
                await embed(parts, ["never computed", "this neither"])
            backend.open()
            if is_option:
                with pytest.raises(DeadlineExceeded):
                    await first
            else:
                assert await first == [17]
            assert parts.gate.admission.num_accepted_items == 0
            assert await embed(parts, ["abc"]) == [3]
        assert backend.seen == ["computed too late", "abc"]

    run(main())


def test_a_request_may_set_a_longer_timeout_than_the_option() -> None:
    parts, backend = gated_parts(request_timeout_s=1)

    async def main() -> None:
        async with started(parts):
            with request_options(timeout_s=PATIENCE_S):
                request = asyncio.create_task(embed(parts, ["abc"]))
            await asyncio.sleep(1.2)
            backend.open()
            assert await request == [3]

    run(main())


def test_a_query_is_computed_before_earlier_bulk_work() -> None:
    parts, backend = gated_parts(batch_size=1)

    async def main() -> None:
        async with started(parts):
            with request_options(lane="bulk"):
                bulk = asyncio.create_task(embed(parts, [f"passage {number:03}" for number in range(50)]))
            await backend.wait_until_reached()
            await run_ready_tasks()
            query = asyncio.create_task(embed(parts, ["query"]))
            await run_ready_tasks()
            backend.open()
            await asyncio.gather(bulk, query)
        # Before it: the one on the device, and the one whose turn it was.
        assert backend.seen.index("query") <= 2

    run(main())


def test_many_requests_of_one_client_do_not_delay_another() -> None:
    parts, backend = gated_parts(batch_size=1)

    async def main() -> None:
        async with started(parts):
            with request_options(client="greedy"):
                many = [asyncio.create_task(embed(parts, [f"text {number:03}"])) for number in range(50)]
            await backend.wait_until_reached()
            await run_ready_tasks()
            with request_options(client="modest"):
                few = [asyncio.create_task(embed(parts, [f"mine {number:03}"])) for number in range(5)]
            await run_ready_tasks()
            backend.open()
            await asyncio.gather(*many, *few)
        places = [backend.seen.index(f"mine {number:03}") for number in range(5)]
        assert max(places) <= 2 * 5 + 2, "the two take turns"

    run(main())


def test_a_request_that_would_wait_too_long_is_refused_with_a_retry_time() -> None:
    """Forty texts, one a batch of a twentieth of a second, are two seconds of work."""
    parts = fake_parts("delay_s=0.05", batch_size=1, max_queue_wait_s=1)

    async def main() -> None:
        async with started(parts):
            await embed(parts, [f"first {number}" for number in range(10)])
            request = asyncio.create_task(embed(parts, [f"text {number}" for number in range(40)]))
            await run_ready_tasks()
            with pytest.raises(Overloaded, match="expected wait of") as caught:
                await embed(parts, [f"another {number}" for number in range(10)])
            assert 1 <= caught.value.retry_after_s <= 3
            assert parts.gate.admission.num_refused == 1
            await request
            assert await embed(parts, ["abc"]) == [3]

    run(main())
