from __future__ import annotations

import asyncio
import contextvars
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_emb.errors import BadInput
from infinity_emb.token_budget import count_tokens, token_budget

counts = st.lists(st.integers(0, 20))


def num_allowed(parts: list[int]) -> int:
    """How many parts are counted before the first refusal."""
    for number, part in enumerate(parts):
        try:
            count_tokens(part)
        except BadInput:
            return number
    return len(parts)


@given(parts=counts, limit=st.integers(1, 100))
def test_parts_are_allowed_as_long_as_their_sum_is_within_the_limit(parts: list[int], limit: int) -> None:
    fitting = [total for total in itertools.accumulate(parts) if total <= limit]
    with token_budget(limit):
        assert num_allowed(parts) == len(fitting)


def test_a_refusal_names_the_sum_so_far_and_the_limit() -> None:
    with token_budget(10):
        count_tokens(10)
        with pytest.raises(BadInput, match=r"has 13 tokens or more, the limit is 10; .*--max-request-tokens"):
            count_tokens(3)


@given(parts=counts)
def test_without_a_limit_and_outside_of_a_budget_everything_is_allowed(parts: list[int]) -> None:
    assert num_allowed(parts) == len(parts)
    with token_budget(0):
        assert num_allowed(parts) == len(parts)


def test_what_is_unlimited_inside_of_a_budget_takes_nothing_from_it() -> None:
    with token_budget(10):
        with token_budget(0):
            count_tokens(100)
        count_tokens(10)
    count_tokens(100)


def test_tasks_share_the_budget_that_they_were_begun_in_and_no_other() -> None:
    async def request(limit: int, parts: list[int]) -> int:
        with token_budget(limit):
            results = await asyncio.gather(*(part(size) for size in parts), return_exceptions=True)
        return sum(result is None for result in results)

    async def part(size: int) -> None:
        await asyncio.sleep(0)
        count_tokens(size)

    async def main() -> list[int]:
        return await asyncio.gather(request(5, [2, 2, 2]), request(0, [9, 9]), request(4, [2, 2]))

    assert asyncio.run(main()) == [2, 2, 2]


def test_a_budget_that_is_closed_in_another_context_ends_without_an_error() -> None:
    """As when an event loop is closed under a request."""
    budget = token_budget(1)
    budget.__enter__()
    contextvars.Context().run(budget.__exit__, None, None, None)
    with token_budget(0):
        count_tokens(2)
