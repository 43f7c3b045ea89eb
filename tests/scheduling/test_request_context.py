from __future__ import annotations

import asyncio
import contextvars
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_emb.errors import BadInput
from infinity_emb.scheduling.fair_queue import Flow
from infinity_emb.scheduling.request_context import (
    DEFAULT_REQUEST,
    MAX_INTERACTIVE_INPUTS,
    RequestContext,
    count_tokens,
    current_request,
    request_options,
    set_request,
    token_budget,
)


def test_a_request_of_many_inputs_is_bulk_work_unless_it_names_a_lane() -> None:
    assert RequestContext(client="a").flow(MAX_INTERACTIVE_INPUTS) == Flow("a", "interactive")
    assert RequestContext(client="a").flow(MAX_INTERACTIVE_INPUTS + 1) == Flow("a", "bulk")
    assert RequestContext(lane="interactive").flow(1000) == Flow("", "interactive")
    assert RequestContext(lane="bulk").flow(1) == Flow("", "bulk")


def test_request_options_apply_inside_the_block_only() -> None:
    with request_options(client="a", lane="bulk", timeout_s=3.0):
        assert current_request() == RequestContext(client="a", lane="bulk", timeout_s=3.0)
    assert current_request() == DEFAULT_REQUEST


def test_concurrent_requests_and_the_tasks_they_start_keep_their_own_context() -> None:
    async def request(client: str) -> str:
        set_request(RequestContext(client=client))
        await asyncio.sleep(0)
        return await asyncio.create_task(part())

    async def part() -> str:
        return current_request().client

    async def requests() -> list[str]:
        return await asyncio.gather(*(asyncio.create_task(request(client)) for client in "abc"))

    assert asyncio.run(requests()) == ["a", "b", "c"]
    assert current_request() == DEFAULT_REQUEST


# The token budget

counts = st.lists(st.integers(0, 20))


def count_allowed(parts: list[int]) -> int:
    """Count parts until the budget is exceeded; return their number."""
    for number, part in enumerate(parts):
        try:
            count_tokens(part)
        except BadInput:
            return number
    return len(parts)


@given(parts=counts, limit=st.integers(1, 100))
def test_parts_are_allowed_while_their_sum_is_within_the_limit(parts: list[int], limit: int) -> None:
    fitting = [total for total in itertools.accumulate(parts) if total <= limit]
    with token_budget(limit):
        assert count_allowed(parts) == len(fitting)


def test_the_error_names_the_tokens_so_far_and_the_limit() -> None:
    with token_budget(10):
        count_tokens(10)
        with pytest.raises(BadInput, match=r"has 13 tokens or more, the limit is 10; .*--max-request-tokens"):
            count_tokens(3)


@given(parts=counts)
def test_without_a_budget_any_number_of_tokens_is_allowed(parts: list[int]) -> None:
    assert count_allowed(parts) == len(parts)
    with token_budget(0):
        assert count_allowed(parts) == len(parts)


def test_an_unlimited_block_inside_a_budget_takes_nothing_from_it() -> None:
    with token_budget(10):
        with token_budget(0):
            count_tokens(100)
        count_tokens(10)
    count_tokens(100)


def test_tasks_share_the_budget_they_were_started_in() -> None:
    async def request(limit: int, parts: list[int]) -> int:
        with token_budget(limit):
            results = await asyncio.gather(*(part(size) for size in parts), return_exceptions=True)
        return sum(result is None for result in results)

    async def part(size: int) -> None:
        await asyncio.sleep(0)
        count_tokens(size)

    async def main() -> list[int]:
        requests = (request(5, [2, 2, 2]), request(0, [9, 9]), request(4, [2, 2]))
        return list(await asyncio.gather(*requests))

    assert asyncio.run(main()) == [2, 2, 2]


def test_a_budget_may_end_in_another_context() -> None:
    """An event loop that is closed during a request ends it so."""
    budget = token_budget(1)
    contextvars.copy_context().run(budget.__enter__)
    contextvars.copy_context().run(budget.__exit__, None, None, None)
    count_tokens(2)
