from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from infinity_emb.concurrency import call_within, deadline
from infinity_emb.errors import DeadlineExceeded
from tests.support.event_loop import PATIENCE_S


def test_what_ends_in_time_is_not_disturbed() -> None:
    async def work() -> str:
        async with deadline(30):
            await asyncio.sleep(0)
        async with deadline(None):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return "done"

    assert asyncio.run(work()) == "done"


def test_what_takes_too_long_is_cancelled_and_told_the_limit() -> None:
    async def work() -> None:
        async with deadline(0.01):
            await asyncio.Event().wait()

    with pytest.raises(DeadlineExceeded, match=r"after 0\.01 s"):
        asyncio.run(work())


def test_after_the_deadline_the_task_can_go_on() -> None:
    async def work() -> str:
        with pytest.raises(DeadlineExceeded):
            async with deadline(0.01):
                await asyncio.Event().wait()
        await asyncio.sleep(0.01)
        return "went on"

    assert asyncio.run(work()) == "went on"


def test_a_task_that_somebody_else_cancels_is_cancelled_and_not_late() -> None:
    async def work() -> None:
        async with deadline(30):
            await asyncio.Event().wait()

    async def cancel_it() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel_it())


def test_an_error_of_the_work_is_its_own() -> None:
    async def work() -> None:
        async with deadline(30):
            raise KeyError("its own")

    with pytest.raises(KeyError):
        asyncio.run(work())


def test_work_within_its_time_returns_its_result() -> None:
    assert call_within(PATIENCE_S, lambda: 1) == 1
    assert call_within(0, lambda: 2) == 2
    with pytest.raises(ValueError, match="own"):
        call_within(PATIENCE_S, lambda: int("own"))


def test_work_that_takes_too_long_is_interrupted() -> None:
    steps: list[int] = []

    def count() -> None:
        while True:
            with contextlib.suppress(Exception):  # as libraries do
                steps.append(len(steps))

    with pytest.raises(TimeoutError, match=r"longer than 0\.05 s"):
        call_within(0.05, count)
    assert steps


def test_an_interruption_comes_within_the_work_or_not_at_all() -> None:
    """It was raised in the code behind the work, when the work ended at that moment."""
    for _ in range(200):
        with contextlib.suppress(TimeoutError):
            call_within(0.001, lambda: time.sleep(0.001))
        for _ in range(100):
            pass
