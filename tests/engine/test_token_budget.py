"""Limit the tokens of one request."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinity_emb.engine.runner import INPUTS_PER_CHUNK
from infinity_emb.errors import (
    BadInput,
)
from infinity_emb.items import (
    InputOptions,
    number_inputs,
)
from tests.support.event_loop import run
from tests.support.fake_engines import embed, fake_parts, gated_parts, started


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(
        st.integers(1, 40).map(lambda length: "x" * length) | st.text("ab", min_size=1), min_size=1
    ),
    factor=st.sampled_from([1, INPUTS_PER_CHUNK]),
    missing=st.integers(-3, 3),
)
def test_a_request_is_served_exactly_when_its_tokens_are_within_the_limit(
    texts: list[str], factor: int, missing: int
) -> None:
    """Duplicates count each time, though they are computed once; nothing of a refused request waits on."""
    texts = [f"{text}{number}" for number in range(factor) for text in texts]
    num_tokens = sum(map(len, texts))
    limit = max(1, num_tokens - missing)

    async def main() -> None:
        async with started(fake_parts(max_request_tokens=limit)) as parts:
            if num_tokens <= limit:
                assert await embed(parts, texts) == [len(text) for text in texts]
            else:
                with pytest.raises(BadInput, match=rf"tokens or more, the limit is {limit};") as raised:
                    await embed(parts, texts)
                assert raised.value.position is None
                assert limit < int(raised.value.reason.split()[3]) <= num_tokens
            assert (parts.gate.admission.num_accepted_items, parts.gate.num_requests) == (0, 0)
            assert await embed(parts, ["x"]) == [1]

    run(main())


def test_a_request_over_the_limit_ends_while_its_first_chunks_are_computed() -> None:
    parts, backend = gated_parts(max_request_tokens=3000, max_batch_tokens=100)
    texts = [f"{number:040}" for number in range(4 * INPUTS_PER_CHUNK)]

    async def main() -> None:
        async with started(parts):
            with pytest.raises(BadInput, match="the request has 5120 tokens or more, the limit is 3000"):
                await embed(parts, texts)
            assert parts.gate.num_requests == 0
            backend.open()
            assert await embed(parts, ["x"]) == [1]

    run(main())
    assert len(backend.seen) < len(texts)


def test_all_runs_of_one_request_share_a_budget() -> None:
    async def main() -> None:
        async with started(fake_parts(max_request_tokens=5)) as parts:
            async with parts.gate.request(2) as open_model:
                await open_model.runner.run(number_inputs(["abc"]), InputOptions())
                with pytest.raises(BadInput, match="has 6 tokens"):
                    await open_model.runner.run(number_inputs(["abc"]), InputOptions())
            assert await embed(parts, ["abcde"]) == [5]

    run(main())
