"""Compute only what is not cached, in memory or on disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infinity_emb.cache.cached_runner import FILE_NAME, CachedRunner
from infinity_emb.cache.keys import MAX_INLINE_INPUTS
from infinity_emb.config.limits import CacheOptions
from infinity_emb.errors import BackendFailed, BadInput
from infinity_emb.items import InputOptions, Outputs, RequestInput, number_inputs
from infinity_emb.scheduling.fair_threads import FairThreads
from infinity_emb.scheduling.request_context import request_options, token_budget
from tests.support.event_loop import run
from tests.support.fake_engines import run_ready_tasks

CACHES = [{"vector_memory_cache_mb": 1}, {"vector_disk_cache": True}]
both_tiers = pytest.mark.parametrize("options", CACHES, ids=["memory", "disk"])
without_deadline = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path))
    return tmp_path


@dataclass
class NumberRunner:
    """Return a vector with the number that each text is, and record the texts."""

    seen: list[str] = field(default_factory=list)
    error: Exception | None = None
    gate: asyncio.Event | None = None

    async def run(self, inputs: Sequence[RequestInput], options: InputOptions) -> Outputs:
        texts = [str(given.value) for given in inputs]
        self.seen += dict.fromkeys(texts)  # the model runner computes duplicates once
        await (asyncio.sleep(0) if self.gate is None else self.gate.wait())
        if self.error is not None:
            raise self.error
        numbers = np.array([int(text) for text in texts])
        return Outputs({"dense": np.repeat(numbers[:, None], 3, 1).astype(np.float32)}, numbers)


@asynccontextmanager
async def opened(runner: NumberRunner, **options: Any) -> AsyncIterator[CachedRunner]:
    threads = FairThreads(1, "test")
    cache = CachedRunner(runner, CacheOptions(**options), "version", threads)
    try:
        yield cache
    finally:
        await cache.close()
        threads.close()


async def compute(cache: CachedRunner, texts: Sequence[str], options: InputOptions | None = None) -> Outputs:
    return await cache.run(number_inputs(texts), options or InputOptions())


async def compute_numbers(cache: CachedRunner, texts: Sequence[str]) -> list[int]:
    return read_numbers(await compute(cache, texts))


def read_numbers(outputs: Outputs) -> list[int]:
    dense = outputs.by_name["dense"]
    assert dense.dtype == np.float32
    assert (dense == outputs.num_tokens[:, None]).all()
    return [int(number) for number in dense[:, 0]]


@both_tiers
def test_an_input_is_computed_once(options: dict[str, Any]) -> None:
    async def main() -> None:
        runner = NumberRunner()
        async with opened(runner, **options) as cache:
            assert await compute_numbers(cache, ["1", "2"]) == [1, 2]
            assert await compute_numbers(cache, ["2", "3", "1"]) == [2, 3, 1]
            assert await compute_numbers(cache, ["3"]) == [3]
            assert runner.seen == ["1", "2", "3"]
            stats = cache.stats
            assert (stats.num_misses, stats.num_memory_hits + stats.num_disk_hits) == (3, 3)

    run(main())


@without_deadline
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=6))
def test_outputs_have_the_order_of_the_inputs_whatever_is_cached(requests: list[list[int]]) -> None:
    async def main() -> None:
        runner = NumberRunner()
        async with opened(runner, vector_memory_cache_mb=1) as cache:
            for numbers in requests:
                assert await compute_numbers(cache, [str(number) for number in numbers]) == numbers

    run(main())


def test_outputs_on_disk_are_moved_into_memory_and_outlive_a_restart(home: Path) -> None:
    async def main() -> None:
        runner = NumberRunner()
        async with opened(runner, vector_disk_cache=True) as cache:
            await compute_numbers(cache, ["1", "2"])
        async with opened(runner, vector_disk_cache=True, vector_memory_cache_mb=1) as cache:
            for _ in range(2):
                assert await compute_numbers(cache, ["2", "1"]) == [2, 1]
            assert (cache.stats.num_disk_hits, cache.stats.num_memory_hits) == (2, 2)
            assert cache.stats.memory_bytes > 0
        assert runner.seen == ["1", "2"]

    run(main())
    assert (home / "infinity_emb" / "vectors" / FILE_NAME).is_file()


@both_tiers
def test_callers_may_change_their_outputs_in_place(options: dict[str, Any]) -> None:
    async def main() -> None:
        runner = NumberRunner()
        async with opened(runner, **options) as cache:
            for texts in (["1", "2"], ["1", "2"], ["2", "3", "1"], ["1", "2"]):
                outputs = await compute(cache, texts)
                assert read_numbers(outputs) == [int(text) for text in texts]
                outputs.by_name["dense"][:] = -1
            assert runner.seen == ["1", "2", "3"]

    run(main())


def test_other_options_have_other_outputs() -> None:
    async def main() -> None:
        runner = NumberRunner()
        async with opened(runner, vector_memory_cache_mb=1) as cache:
            for prompt in ("", "query: ", ""):
                await compute(cache, ["1"], InputOptions(prompt=prompt))
            assert runner.seen == ["1", "1"]

    run(main())


def test_keys_of_large_requests_are_computed_on_a_thread() -> None:
    async def main() -> None:
        runner, texts = NumberRunner(), [str(number) for number in range(MAX_INLINE_INPUTS + 1)]
        async with opened(runner, vector_memory_cache_mb=1) as cache:
            await compute_numbers(cache, texts)
            assert await compute_numbers(cache, texts[:3]) == [0, 1, 2]
            assert runner.seen == texts

    run(main())


def test_an_error_is_not_cached() -> None:
    async def main() -> None:
        runner = NumberRunner()
        async with opened(runner, vector_memory_cache_mb=1) as cache:
            await compute_numbers(cache, ["1", "2"])
            for error in (BadInput("is too long", position=3), BackendFailed("fails", position=1)):
                runner.error = error
                with pytest.raises(type(error), match=str(error)):
                    await compute_numbers(cache, ["1", "3", "2", "4"])
            runner.error = None
            assert await compute_numbers(cache, ["3", "4"]) == [3, 4]

    run(main())


def test_cached_inputs_count_towards_the_token_budget_each_time_they_occur() -> None:
    async def main() -> None:
        async with opened(NumberRunner(), vector_memory_cache_mb=1) as cache:
            await compute_numbers(cache, ["30", "40"])
            with token_budget(100):
                assert await compute_numbers(cache, ["30", "40", "30"]) == [30, 40, 30]
            with token_budget(99), pytest.raises(BadInput, match="100 tokens or more, the limit is 99"):
                await compute_numbers(cache, ["30", "40", "30"])

    run(main())


def test_concurrent_requests_compute_a_text_once() -> None:
    async def main() -> None:
        runner = NumberRunner(gate=asyncio.Event())
        async with opened(runner, vector_memory_cache_mb=1) as cache:
            requests = [
                asyncio.create_task(compute(cache, texts))
                for texts in (["1", "2"], ["2", "3", "2"], ["3", "1"], ["2"])
            ]
            await run_ready_tasks()
            assert runner.gate is not None
            runner.gate.set()
            for request, expected in zip(requests, ([1, 2], [2, 3, 2], [3, 1], [2]), strict=True):
                outputs = await request
                assert read_numbers(outputs) == expected
                outputs.by_name["dense"][:] = -1
            assert sorted(runner.seen) == ["1", "2", "3"]
            assert cache.stats.num_shared == 4

    run(main())


def test_an_interactive_request_does_not_wait_for_a_bulk_one() -> None:
    async def main() -> None:
        runner = NumberRunner(gate=asyncio.Event())
        async with opened(runner, vector_memory_cache_mb=1) as cache:
            with request_options(lane="bulk"):
                bulk = asyncio.create_task(compute_numbers(cache, ["1"]))
            await run_ready_tasks()
            gate, runner.gate = runner.gate, None
            assert await compute_numbers(cache, ["1"]) == [1]
            assert gate is not None
            gate.set()
            assert await bulk == [1]

    run(main())


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_a_request_computes_what_another_one_failed_to_compute(is_cancelled: bool) -> None:
    async def main() -> None:
        runner = NumberRunner(gate=asyncio.Event())
        async with opened(runner, vector_memory_cache_mb=1) as cache:
            first = asyncio.create_task(compute_numbers(cache, ["1", "2"]))
            await run_ready_tasks()
            gate, runner.gate = runner.gate, None
            second = asyncio.create_task(compute_numbers(cache, ["2", "3"]))
            await run_ready_tasks()
            assert not second.done()
            if is_cancelled:
                first.cancel()
            else:
                runner.error = BackendFailed("fails")
            assert gate is not None
            gate.set()
            with pytest.raises(asyncio.CancelledError if is_cancelled else BackendFailed):
                await first
            runner.error = None
            assert await second == [2, 3]
            assert runner.seen == ["1", "2", "3", "2"]

    run(main())


def test_a_cancelled_request_does_not_cancel_the_one_that_it_waits_for() -> None:
    async def main() -> None:
        runner = NumberRunner(gate=asyncio.Event())
        async with opened(runner, vector_memory_cache_mb=1) as cache:
            first = asyncio.create_task(compute_numbers(cache, ["1"]))
            await run_ready_tasks()
            second = asyncio.create_task(compute_numbers(cache, ["1"]))
            await run_ready_tasks()
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            assert runner.gate is not None
            runner.gate.set()
            assert await first == [1]

    run(main())


@dataclass(frozen=True)
class Plan:
    """A request: its texts, when it starts, and when it is cancelled."""

    numbers: list[int]
    start: int
    cancelled_after: int | None


PLANS = st.lists(
    st.builds(
        Plan,
        numbers=st.lists(st.integers(0, 5), min_size=1, max_size=6),
        start=st.integers(0, 8),
        cancelled_after=st.one_of(st.none(), st.integers(0, 12)),
    ),
    min_size=1,
    max_size=8,
)


@without_deadline
@given(PLANS, st.sampled_from([0, 1]))
def test_whatever_is_cancelled_the_other_requests_get_their_own_outputs(
    plans: list[Plan], memory_mb: int
) -> None:
    async def carry_out(plan: Plan, cache: CachedRunner) -> None:
        await run_ready_tasks(plan.start)
        request = asyncio.create_task(compute_numbers(cache, [str(number) for number in plan.numbers]))
        if plan.cancelled_after is not None:
            await run_ready_tasks(plan.cancelled_after)
            request.cancel()
        try:
            assert await request == plan.numbers
        except asyncio.CancelledError:
            assert plan.cancelled_after is not None

    async def main() -> None:
        runner = NumberRunner()
        async with opened(runner, vector_memory_cache_mb=memory_mb) as cache:
            await asyncio.gather(*(carry_out(plan, cache) for plan in plans))
        if memory_mb and all(plan.cancelled_after is None for plan in plans):
            assert len(set(runner.seen)) == len(runner.seen)

    run(main())
