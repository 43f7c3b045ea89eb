from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator

import pytest

from infinity_emb.scheduling.paced_call import MAX_REST_S, REST_PER_CALL, PacedCall
from tests.support.event_loop import run


class Clock:
    """A call of a hundredth of a second that records when it ran."""

    def __init__(self) -> None:
        self.ran: list[tuple[float, float]] = []
        self.num_running = 0

    async def call(self) -> int:
        assert not self.num_running, "one at a time"
        self.num_running += 1
        started_s = time.monotonic()
        await asyncio.sleep(0.01)
        self.ran.append((started_s, time.monotonic()))
        self.num_running -= 1
        return len(self.ran)


def test_calls_that_are_wanted_together_are_one() -> None:
    async def main() -> None:
        clock = Clock()
        paced = PacedCall(clock.call)
        assert await asyncio.gather(*(paced.get() for _ in range(50))) == [1] * 50

    run(main())


def test_a_result_is_never_older_than_the_wish_for_it() -> None:
    async def main() -> None:
        clock = Clock()
        paced = PacedCall(clock.call)
        first = asyncio.create_task(paced.get())
        while not clock.num_running:
            await asyncio.sleep(0)
        assert await paced.get() == 2
        assert await first == 1

    run(main())


def test_a_call_rests_for_a_multiple_of_the_time_that_it_took() -> None:
    async def main() -> Clock:
        clock = Clock()
        paced = PacedCall(clock.call)
        for _ in range(4):
            await paced.get()
        return clock

    for (began_s, ended_s), (next_s, _) in itertools.pairwise(run(main()).ran):
        assert next_s - ended_s >= min(MAX_REST_S, (REST_PER_CALL - 0.1) * (ended_s - began_s))


def test_one_who_no_longer_waits_and_an_error_stop_nobody_else() -> None:
    async def main() -> None:
        results: Iterator[ValueError | int] = iter([ValueError("failed"), 7])

        async def call() -> int:
            await asyncio.sleep(0.001)
            result = next(results)
            if isinstance(result, Exception):
                raise result
            return result

        paced = PacedCall(call)
        gone, other = asyncio.create_task(paced.get()), asyncio.create_task(paced.get())
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(ValueError, match="failed"):
            await other
        assert await paced.get() == 7

    run(main())


def test_a_call_that_waited_in_a_closed_loop_stops_no_later_one() -> None:
    clock = Clock()
    paced = PacedCall(clock.call)

    async def leave_one_waiting() -> None:
        first = asyncio.create_task(paced.get())
        while not clock.num_running:
            await asyncio.sleep(0)
        asyncio.create_task(paced.get())  # noqa: RUF006 (cancelled with the loop)
        await first

    run(leave_one_waiting())
    assert run(paced.get()) == 2
