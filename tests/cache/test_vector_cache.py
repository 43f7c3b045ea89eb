from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infinity_emb.backends import fake
from infinity_emb.backends.base import InputOptions
from infinity_emb.cache.keys import MAX_INLINE_INPUTS
from infinity_emb.cache.vector_cache import FILE_NAME, VectorCache
from infinity_emb.caller import calling
from infinity_emb.computed import Computed
from infinity_emb.config import EngineArgs
from infinity_emb.errors import BackendFailed, BadInput
from infinity_emb.token_budget import token_budget

PATIENCE_S = 30.0
T = TypeVar("T")
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path))
    return tmp_path


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE_S))


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[VectorCache]:
    args = EngineArgs(model_name_or_path="debug", engine="debugengine", **options)

    async def run_on_thread(function: Callable[[], Any]) -> Any:
        return await asyncio.to_thread(function)

    cache = VectorCache(args, fake.load_model(args).info, run_on_thread)
    try:
        yield cache
    finally:
        await cache.close()


def numbers_of(computed: Computed) -> list[int]:
    """The answer to a text is the number that it is."""
    column = computed.columns["dense"]
    assert column.dtype == np.float32
    assert (column == computed.num_tokens[:, None]).all()
    return [int(number) for number in column[:, 0]]


@dataclass
class Model:
    """Answers texts that are numbers, and remembers which."""

    seen: list[str] = field(default_factory=list)
    num_steps: int = 0
    error: Exception | None = None
    gate: asyncio.Event | None = None

    async def answer(
        self, cache: VectorCache, texts: Sequence[str], options: InputOptions | None = None
    ) -> Computed:
        async def compute(places: Sequence[int]) -> Computed:
            asked = [texts[at] for at in places]
            self.seen += asked
            if self.gate is not None:
                await self.gate.wait()
            for _ in range(self.num_steps):
                await asyncio.sleep(0)
            if self.error is not None:
                raise self.error
            numbers = np.array([int(text) for text in asked])
            return Computed({"dense": np.repeat(numbers[:, None], 3, 1).astype(np.float32)}, numbers)

        return await cache.answer(texts, [1] * len(texts), options or InputOptions(), compute)

    async def numbers(self, cache: VectorCache, texts: Sequence[str]) -> list[int]:
        return numbers_of(await self.answer(cache, texts))


CACHES = [{"vector_memory_cache_mb": 1}, {"vector_disk_cache": True}]
both_tiers = pytest.mark.parametrize("options", CACHES, ids=["memory", "disk"])


@both_tiers
def test_what_was_computed_is_not_computed_again(options: dict[str, Any]) -> None:
    async def main() -> None:
        model = Model()
        async with opened(**options) as cache:
            assert await model.numbers(cache, ["1", "2"]) == [1, 2]
            assert await model.numbers(cache, ["2", "3", "1"]) == [2, 3, 1]
            assert await model.numbers(cache, ["3"]) == [3]
            assert model.seen == ["1", "2", "3"]
            stats = cache.stats
            assert (stats.num_misses, stats.num_memory_hits + stats.num_disk_hits) == (3, 3)

    run(main())


def test_what_lies_on_disk_comes_into_memory_and_outlives_a_restart(home: Path) -> None:
    async def main() -> None:
        model = Model()
        async with opened(vector_disk_cache=True) as cache:
            await model.numbers(cache, ["1", "2"])
        async with opened(vector_disk_cache=True, vector_memory_cache_mb=1) as cache:
            for _ in range(2):
                assert await model.numbers(cache, ["2", "1"]) == [2, 1]
            assert (cache.stats.num_disk_hits, cache.stats.num_memory_hits) == (2, 2)
            assert cache.stats.memory_bytes > 0
        assert model.seen == ["1", "2"]

    run(main())
    assert (home / "infinity_emb" / "vectors" / FILE_NAME).is_file()


@both_tiers
def test_callers_may_change_what_they_get(options: dict[str, Any]) -> None:
    async def main() -> None:
        model = Model()
        async with opened(**options) as cache:
            model.gate = asyncio.Event()
            requests = [asyncio.create_task(model.answer(cache, ["1", "2"])) for _ in range(3)]
            await asyncio.sleep(0.01)
            model.gate.set()
            for request in requests:
                computed = await request
                assert numbers_of(computed) == [1, 2]
                computed.columns["dense"][:] = -1
            for _ in range(2):
                computed = await model.answer(cache, ["1", "2"])
                assert numbers_of(computed) == [1, 2]
                computed.columns["dense"][:] = -1
            assert model.seen == ["1", "2"]

    run(main())


def test_other_options_are_other_answers() -> None:
    async def main() -> None:
        model = Model()
        async with opened(vector_memory_cache_mb=1) as cache:
            for prompt in ("", "query: ", ""):
                await model.answer(cache, ["1"], InputOptions(prompt=prompt))
            assert model.seen == ["1", "1"]

    run(main())


def test_many_texts_are_hashed_on_a_thread_with_the_same_keys() -> None:
    async def main() -> None:
        model, texts = Model(), [str(number) for number in range(MAX_INLINE_INPUTS + 1)]
        async with opened(vector_memory_cache_mb=1) as cache:
            await model.numbers(cache, texts)
            assert await model.numbers(cache, texts[:3]) == [0, 1, 2]
            assert model.seen == texts

    run(main())


def test_an_error_names_the_place_in_the_request_and_is_not_kept() -> None:
    async def main() -> None:
        model = Model()
        async with opened(vector_memory_cache_mb=1) as cache:
            await model.numbers(cache, ["1", "2"])
            model.error = BadInput("is too long", position=1)
            with pytest.raises(BadInput, match="input 3 is too long"):
                await model.numbers(cache, ["1", "3", "2", "4"])
            model.error = None
            assert await model.numbers(cache, ["3", "4"]) == [3, 4]

    run(main())


def test_answers_that_are_found_count_in_the_budget_of_a_request() -> None:
    async def main() -> None:
        model = Model()
        async with opened(vector_memory_cache_mb=1) as cache:
            await model.numbers(cache, ["30", "40"])
            with token_budget(70):
                assert await model.numbers(cache, ["30", "40"]) == [30, 40]
            with token_budget(69), pytest.raises(BadInput, match="70 tokens or more, the limit is 69"):
                await model.numbers(cache, ["30", "40"])

    run(main())


def test_requests_at_the_same_time_compute_a_text_once() -> None:
    async def main() -> None:
        model = Model()
        async with opened(vector_memory_cache_mb=1) as cache:
            model.gate = asyncio.Event()
            requests = [
                asyncio.create_task(model.numbers(cache, texts))
                for texts in (["1", "2"], ["2", "3"], ["3", "1"], ["2"])
            ]
            await asyncio.sleep(0.01)
            model.gate.set()
            assert await asyncio.gather(*requests) == [[1, 2], [2, 3], [3, 1], [2]]
            assert sorted(model.seen) == ["1", "2", "3"]
            assert cache.stats.num_shared == 4

    run(main())


def test_an_interactive_request_does_not_wait_for_a_bulk_one() -> None:
    async def main() -> None:
        slow, quick = Model(gate=asyncio.Event()), Model()
        async with opened(vector_memory_cache_mb=1) as cache:
            with calling(lane="bulk"):
                bulk = asyncio.create_task(slow.numbers(cache, ["1"]))
            await asyncio.sleep(0)
            assert await quick.numbers(cache, ["1"]) == [1]
            assert slow.gate is not None
            slow.gate.set()
            assert await bulk == [1]

    run(main())


@pytest.mark.parametrize("end", ["fail", "cancel"])
def test_who_waits_for_a_request_that_ends_badly_computes_for_itself(end: str) -> None:
    async def main() -> None:
        first, second = Model(gate=asyncio.Event()), Model()
        async with opened(vector_memory_cache_mb=1) as cache:
            leading = asyncio.create_task(first.numbers(cache, ["1", "2"]))
            await asyncio.sleep(0)
            waiting = asyncio.create_task(second.numbers(cache, ["2", "3"]))
            await asyncio.sleep(0.01)
            assert not waiting.done()
            if end == "cancel":
                leading.cancel()
            first.error = BackendFailed("told to fail")
            assert first.gate is not None
            first.gate.set()
            assert await waiting == [2, 3]
            with pytest.raises(asyncio.CancelledError if end == "cancel" else BackendFailed):
                await leading
            assert second.seen == ["3", "2"]

    run(main())


@dataclass(frozen=True)
class Plan:
    """One request: what it asks, when it starts, how long its computing takes, and how it ends."""

    numbers: list[int]
    start: int
    num_steps: int
    fails: bool
    cancelled_after: int | None


def plans(*, is_good: bool) -> st.SearchStrategy[list[Plan]]:
    plan = st.builds(
        Plan,
        numbers=st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True),
        start=st.integers(0, 8),
        num_steps=st.integers(0, 12),
        fails=st.just(False) if is_good else st.booleans(),
        cancelled_after=st.none() if is_good else st.one_of(st.none(), st.integers(0, 12)),
    )
    return st.lists(plan, min_size=1, max_size=8)


async def carry_out(plan: Plan, cache: VectorCache, seen: list[str]) -> list[int]:
    """Raises BackendFailed where it is told to, and CancelledError."""
    error = BackendFailed("told to fail") if plan.fails else None
    model = Model(seen, num_steps=plan.num_steps, error=error)
    for _ in range(plan.start):
        await asyncio.sleep(0)
    request = asyncio.create_task(model.numbers(cache, [str(number) for number in plan.numbers]))
    if plan.cancelled_after is not None:
        for _ in range(plan.cancelled_after):
            await asyncio.sleep(0)
        request.cancel()
    return await request


async def carry_out_all(given_plans: list[Plan], options: dict[str, Any]) -> tuple[list[Any], list[str]]:
    seen: list[str] = []
    async with opened(**options) as cache:
        results = await asyncio.gather(
            *(carry_out(plan, cache, seen) for plan in given_plans), return_exceptions=True
        )
        assert not cache._flights._waiting, "nobody leads when everybody has ended"
    return results, seen


@pytest.mark.parametrize("options", [{}, *CACHES], ids=["nothing kept", "memory", "disk"])
def test_whatever_ends_badly_ends_alone(options: dict[str, Any]) -> None:
    """Every request that is not cancelled ends: with its own answers, or its own error."""

    @settings(unhurried, max_examples=30 if "vector_disk_cache" in options else 200)
    @given(plans(is_good=False))
    def check(given_plans: list[Plan]) -> None:
        results, _ = run(carry_out_all(given_plans, options))
        for plan, result in zip(given_plans, results, strict=True):
            if isinstance(result, asyncio.CancelledError):
                assert plan.cancelled_after is not None
            elif isinstance(result, BaseException):
                assert plan.fails
                assert isinstance(result, BackendFailed)
            else:
                assert result == plan.numbers

    check()


@settings(unhurried, max_examples=200)
@given(plans(is_good=True))
def test_where_nothing_fails_every_text_is_computed_once(given_plans: list[Plan]) -> None:
    results, seen = run(carry_out_all(given_plans, {"vector_memory_cache_mb": 1}))
    assert results == [plan.numbers for plan in given_plans]
    assert set(Counter(seen).values()) == {1}
