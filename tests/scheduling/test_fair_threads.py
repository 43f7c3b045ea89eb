"""Threads that clients share by characters."""

from __future__ import annotations

import asyncio

import pytest

from infinity_emb.errors import EngineNotReady
from infinity_emb.scheduling.fair_threads import MAX_SHORT_CHARS, FairThreads
from infinity_emb.scheduling.request_context import request_options
from tests.support.event_loop import run
from tests.support.fake_engines import run_ready_tasks
from tests.support.gated_backend import Gate


def test_a_client_does_not_wait_for_what_another_queued_earlier() -> None:
    ran: list[str] = []
    gate = Gate()

    async def main() -> None:
        threads = FairThreads(1, "test")
        with request_options(client="hog"):
            hog = [asyncio.create_task(threads.run(gate, num_chars=MAX_SHORT_CHARS))]
            hog += [
                asyncio.create_task(threads.run(lambda: ran.append("hog"), num_chars=MAX_SHORT_CHARS))
                for _ in range(100)
            ]
        await gate.wait_until_reached()
        with request_options(client="other"):
            other = asyncio.create_task(threads.run(lambda: ran.append("other"), num_chars=2_000))
        await run_ready_tasks()
        gate.open()
        await asyncio.gather(other, *hog)
        threads.close()

    run(main())
    assert "other" in ran[:3]
    assert len(ran) == 101


def test_short_work_does_not_wait_for_long_work() -> None:
    """A text of a megabyte takes seconds, and a library in another language cannot be interrupted."""
    gate = Gate()

    async def main() -> None:
        threads = FairThreads(1, "test")
        long_work = [asyncio.create_task(threads.run(gate, num_chars=MAX_SHORT_CHARS + 1)) for _ in range(5)]
        await gate.wait_until_reached()
        assert await threads.run(lambda: "short", num_chars=MAX_SHORT_CHARS) == "short"
        gate.open()
        await asyncio.gather(*long_work)
        threads.close()

    run(main())


def test_work_that_outlasts_its_caller_keeps_its_slot() -> None:
    """Otherwise a client that disconnects again and again would occupy every thread."""
    gate = Gate()
    ran: list[int] = []

    async def main() -> None:
        threads = FairThreads(1, "test")
        abandoned = asyncio.create_task(threads.run(gate, num_chars=1))
        await gate.wait_until_reached()
        abandoned.cancel()
        waiting = asyncio.create_task(threads.run(lambda: ran.append(1), num_chars=1))
        await run_ready_tasks()
        assert abandoned.cancelled()
        assert not ran
        gate.open()
        await waiting
        threads.close()

    run(main())
    assert ran == [1]


def test_work_whose_caller_is_cancelled_never_starts() -> None:
    gate = Gate()
    ran: list[int] = []

    async def main() -> None:
        threads = FairThreads(1, "test")
        running = asyncio.create_task(threads.run(gate, num_chars=1))
        await gate.wait_until_reached()
        waiting = asyncio.create_task(threads.run(lambda: ran.append(1), num_chars=1))
        await run_ready_tasks()
        waiting.cancel()
        await run_ready_tasks()  # asyncio tells the thread pool of it
        gate.open()
        await running
        assert await threads.run(lambda: 2, num_chars=1) == 2
        threads.close()

    run(main())
    assert ran == []


def test_errors_reach_the_caller_and_free_the_slot() -> None:
    async def main() -> None:
        threads = FairThreads(1, "test")
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await threads.run(lambda: 1 / 0, num_chars=1)
        threads.close()
        for _ in range(3):
            with pytest.raises(EngineNotReady):
                await threads.run(lambda: 1, num_chars=1)

    run(main())
