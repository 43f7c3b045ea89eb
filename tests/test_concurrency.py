from __future__ import annotations

import asyncio
import contextlib
import functools
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from infinity_emb.concurrency import LoopCalls, OncePerTurn, call_within, deadline
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


def test_after_an_interruption_functions_can_be_traced() -> None:
    """With a flag left set in the interpreter, the first traced call would never return."""
    script = """
import sys
from infinity_emb.concurrency import call_within
def work():
    while True:
        pass
for _ in range(3):
    try:
        call_within(0.01, work)
    except TimeoutError:
        pass
sys.settrace(lambda *event: None)
print(call_within(60, lambda: "traced"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout == "traced\n", done.stderr


def test_functions_of_another_thread_are_called_in_order_and_wake_the_loop_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[int] = []
    num_wakes = 0

    async def work() -> None:
        nonlocal num_wakes
        loop = asyncio.get_running_loop()
        calls = LoopCalls(loop)
        wake = loop.call_soon_threadsafe

        def count(*args: Any) -> Any:
            nonlocal num_wakes
            num_wakes += 1
            return wake(*args)

        monkeypatch.setattr(loop, "call_soon_threadsafe", count)

        def add_all() -> None:
            for index in range(5):
                calls.add(functools.partial(called.append, index))

        thread = threading.Thread(target=add_all)
        thread.start()
        thread.join()  # the loop runs nothing meanwhile
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        calls.add(lambda: called.append(5))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(work())
    assert (called, num_wakes) == ([0, 1, 2, 3, 4, 5], 2)


def test_a_function_is_called_once_for_all_that_ask_in_one_turn_of_the_loop() -> None:
    calls: list[str] = []
    once = OncePerTurn(lambda: calls.append("called"))

    async def ask() -> None:
        for _ in range(3):
            once.request()

    async def work() -> None:
        await asyncio.gather(ask(), ask())
        await asyncio.sleep(0)
        once.request()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(work())
    assert len(calls) == 2


def test_a_call_that_a_closed_loop_has_not_made_does_not_stop_the_next_loop() -> None:
    calls: list[str] = []
    once = OncePerTurn(lambda: calls.append("called"))
    closed = asyncio.new_event_loop()
    closed.call_soon(once.request)
    closed.call_soon(closed.stop)
    closed.run_forever()
    closed.close()

    async def work() -> None:
        once.request()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(work())
    assert calls == ["called"]
