from __future__ import annotations

import asyncio

from infinity_emb.caller import MAX_INTERACTIVE_INPUTS, NOBODY, Caller, calling, present_caller, set_caller
from infinity_emb.fairness import Flow


def test_a_request_of_many_inputs_is_bulk_work_unless_it_says_otherwise() -> None:
    assert Caller(client="a").flow(MAX_INTERACTIVE_INPUTS) == Flow("a", "interactive")
    assert Caller(client="a").flow(MAX_INTERACTIVE_INPUTS + 1) == Flow("a", "bulk")
    assert Caller(lane="interactive").flow(1000) == Flow("", "interactive")
    assert Caller(lane="bulk").flow(1) == Flow("", "bulk")


def test_what_is_asked_inside_is_asked_so_and_outside_by_nobody() -> None:
    with calling(client="a", lane="bulk", timeout_s=3.0):
        assert present_caller() == Caller(client="a", lane="bulk", timeout_s=3.0)
    assert present_caller() == NOBODY


def test_requests_side_by_side_have_each_their_own_caller_and_so_have_the_tasks_they_start() -> None:
    async def request(client: str) -> str:
        set_caller(Caller(client=client))
        await asyncio.sleep(0)
        return await asyncio.create_task(part())

    async def part() -> str:
        return present_caller().client

    async def requests() -> list[str]:
        return await asyncio.gather(*(asyncio.create_task(request(client)) for client in "abc"))

    assert asyncio.run(requests()) == ["a", "b", "c"]
    assert present_caller() == NOBODY
