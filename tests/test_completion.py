from __future__ import annotations

import asyncio

import pytest

from infinity_emb.completion import deadline
from infinity_emb.errors import DeadlineExceeded


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

    with pytest.raises(DeadlineExceeded, match=r"within 0\.01 s"):
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
