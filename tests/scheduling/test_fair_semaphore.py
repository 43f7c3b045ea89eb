"""A semaphore whose waiters take turns by client."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinity_emb.scheduling.fair_queue import Flow
from infinity_emb.scheduling.fair_semaphore import FairSemaphore
from tests.support.event_loop import run
from tests.support.fake_engines import run_ready_tasks

HOG, OTHER = Flow("hog", "bulk"), Flow("other")
FLOWS = [Flow(client, lane) for client in "ab" for lane in ("interactive", "bulk")]


class Holders:
    """Tasks that take a permit, write that down, and return it when told."""

    def __init__(self, num_permits: int, max_per_client: int | None = None) -> None:
        self.semaphore = FairSemaphore(num_permits, max_per_client=max_per_client)
        self.num_permits = num_permits
        self.order: list[object] = []
        self.num_holding = 0
        self._may_end: dict[object, asyncio.Event] = {}
        self._tasks: dict[object, asyncio.Task[None]] = {}

    async def start(self, name: object, flow: Flow, cost: int = 10) -> None:
        self._may_end[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._hold(name, flow, cost))
        await run_ready_tasks()

    async def end(self, name: object) -> None:
        self._may_end[name].set()
        await run_ready_tasks()

    async def end_all(self) -> None:
        for may_end in self._may_end.values():
            may_end.set()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def cancel(self, name: object) -> None:
        self._tasks[name].cancel()
        await run_ready_tasks()

    async def _hold(self, name: object, flow: Flow, cost: int) -> None:
        await self.semaphore.acquire(flow, cost)
        self.order.append(name)
        self.num_holding += 1
        assert self.num_holding <= self.num_permits
        try:
            await self._may_end[name].wait()
        finally:
            self.num_holding -= 1
            self.semaphore.release(flow)


def test_another_client_is_served_before_what_a_hog_queued_earlier() -> None:
    async def main() -> None:
        holders = Holders(1)
        for number in range(50):
            await holders.start(number, HOG, cost=60_000)
        await holders.start("other", OTHER, cost=2_000)
        await holders.end(0)
        await holders.end(holders.order[-1])
        assert "other" in holders.order[:3]
        await holders.end_all()
        assert sorted(map(str, holders.order)) == sorted([*map(str, range(50)), "other"])

    run(main())


def test_a_client_holds_its_number_of_permits_and_others_find_one() -> None:
    async def main() -> None:
        holders = Holders(3, max_per_client=2)
        for number in range(5):
            await holders.start(number, HOG)
        assert holders.order == [0, 1]
        await holders.start("other", OTHER)
        await holders.start("one more", OTHER)
        assert holders.order == [0, 1, "other"]
        await holders.end("other")
        assert holders.order == [0, 1, "other", "one more"]
        await holders.end("one more")
        assert len(holders.order) == 4
        await holders.end(0)
        assert holders.order[4:] == [2]

    run(main())


def test_a_waiter_that_is_cancelled_takes_no_turn() -> None:
    async def main() -> None:
        holders = Holders(1)
        for name in ("first", "cancelled", "last"):
            await holders.start(name, OTHER)
        await holders.cancel("cancelled")
        await holders.end("first")
        assert holders.order == ["first", "last"]

    run(main())


def test_a_permit_that_comes_with_the_cancellation_goes_to_the_next() -> None:
    async def main() -> None:
        holders = Holders(1)
        for name in ("first", "cancelled", "last"):
            await holders.start(name, OTHER)
        holders.semaphore.release(OTHER)  # the turn of `cancelled`, who has not noticed yet
        await holders.cancel("cancelled")
        assert holders.order == ["first", "last"]

    run(main(), timeout_s=10)


def test_a_waiter_that_is_cancelled_when_the_semaphore_is_closed_returns_no_permit() -> None:
    async def main() -> None:
        semaphore = FairSemaphore(1)
        await semaphore.acquire(HOG, 1)
        waiting = asyncio.ensure_future(semaphore.acquire(OTHER, 1))
        await run_ready_tasks()
        semaphore.close(lambda: RuntimeError("closed"))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        semaphore.release(HOG)

    run(main())


def test_a_closed_semaphore_raises_its_error() -> None:
    async def main() -> None:
        semaphore = FairSemaphore(1)
        await semaphore.acquire(OTHER, 1)
        waiting = [asyncio.create_task(semaphore.acquire(OTHER, 1)) for _ in range(3)]
        await run_ready_tasks()
        semaphore.close(lambda: OSError("closed"))
        waiting.append(asyncio.create_task(semaphore.acquire(OTHER, 1)))
        for task in waiting:
            with pytest.raises(OSError, match="closed"):
                await task

    run(main())


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["start", "end", "cancel"]), st.sampled_from(FLOWS), st.integers(0, 1000)),
    max_size=60,
)


@settings(deadline=None)
@given(st.integers(1, 3), ACTIONS)
def test_permits_are_neither_lost_nor_doubled(
    num_permits: int, actions: Sequence[tuple[str, Flow, int]]
) -> None:
    async def main() -> None:
        holders = Holders(num_permits)
        open_names: list[int] = []
        for number, (action, flow, cost) in enumerate(actions):
            if action == "start":
                await holders.start(number, flow, cost)
                open_names.append(number)
            elif open_names:
                name = open_names.pop(cost % len(open_names))
                await (holders.end(name) if action == "end" else holders.cancel(name))
            assert holders.num_holding == min(num_permits, len(open_names))
        await holders.end_all()
        assert holders.num_holding == 0
        for _ in range(num_permits):
            await asyncio.wait_for(holders.semaphore.acquire(OTHER, 1), 10)

    run(main())
