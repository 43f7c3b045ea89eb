from __future__ import annotations

import asyncio
import gc
import threading
import traceback
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinity_emb import running_model as running_model_module
from infinity_emb.backends import fake
from infinity_emb.backends.base import Clip, Encoded, Input, InputOptions, Pair, Passages, Picture
from infinity_emb.caller import calling
from infinity_emb.completion import gather_or_cancel
from infinity_emb.config import EngineArgs
from infinity_emb.errors import (
    BackendFailed,
    BadInput,
    DeadlineExceeded,
    EngineNotReady,
    InputTooLong,
    Overloaded,
)
from infinity_emb.running_model import (
    DRAIN_TIMEOUT_S,
    INLINE_CHARS,
    INPUTS_PER_CHUNK,
    MAX_INLINE_INPUTS,
    MEDIA_PER_CHUNK,
    Computed,
    RunningModel,
)

# Everything below is waited for by an event; a wait that takes this long has failed.
PATIENCE_S = 30.0
T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE_S))


# A tiny world: the fake model, whose vectors say how many characters a text has, behind gates if need be.


@dataclass
class GatedBackend:
    """The fake backend behind a gate, with a list of the texts that reached it."""

    backend: Any
    is_reached: threading.Event = field(default_factory=threading.Event)
    is_open: threading.Event = field(default_factory=threading.Event)
    seen: list[str] = field(default_factory=list)
    num_in_flight = 1
    shares_device = False

    def prepare_thread(self) -> None:
        pass

    def free_memory(self) -> None:
        pass

    def launch(self, batch: Sequence[Encoded], *, full_precision: bool = False) -> Any:
        self.seen += map(fake._decode, batch)
        self.is_reached.set()
        assert self.is_open.wait(PATIENCE_S)
        return self.backend.launch(batch, full_precision=full_precision)

    async def wait_until_reached(self) -> None:
        assert await asyncio.to_thread(self.is_reached.wait, PATIENCE_S)


@dataclass
class GatedPrepare:
    """The fake preprocessing, which waits at a gate for texts that start with `slow`."""

    is_reached: threading.Event = field(default_factory=threading.Event)
    is_open: threading.Event = field(default_factory=threading.Event)

    def __call__(self, inputs: Sequence[Input], options: InputOptions) -> list[Encoded]:
        if str(inputs[0]).startswith("slow"):
            self.is_reached.set()
            assert self.is_open.wait(PATIENCE_S)
        return fake.prepare(inputs, options)

    async def wait_until_reached(self) -> None:
        assert await asyncio.to_thread(self.is_reached.wait, PATIENCE_S)


def running_of(faults: str = "", *, prepare: Any = fake.prepare, **options: Any) -> RunningModel:
    args = EngineArgs(model_name_or_path=f"debug?{faults}", engine="debugengine", **options)
    return RunningModel(replace(fake.load_model(args), prepare=prepare), args)


def gated(
    faults: str = "", *, prepare: Any = fake.prepare, **options: Any
) -> tuple[RunningModel, GatedBackend]:
    args = EngineArgs(model_name_or_path=f"debug?{faults}", engine="debugengine", **options)
    model = fake.load_model(args)
    backend = GatedBackend(model.replicas[0])
    return RunningModel(replace(model, replicas=[backend], prepare=prepare), args), backend


@asynccontextmanager
async def started(running: RunningModel) -> AsyncIterator[RunningModel]:
    running.start()
    try:
        yield running
    finally:
        await running.stop(DRAIN_TIMEOUT_S)


async def answer(running: RunningModel, inputs: Sequence[Input], **how: Any) -> Computed:
    """As the engine does for every task."""
    async with running.admitted(len(inputs)):
        return await running.compute(inputs, InputOptions(**how))


async def embed(running: RunningModel, texts: list[str], **how: Any) -> list[int]:
    """The length of each text, by its vector."""
    return lengths_of(await answer(running, texts, **how))


def lengths_of(computed: Computed) -> list[int]:
    assert (computed.columns["dense"] == computed.columns["dense"][:, :1]).all()
    return [int(length) for length in computed.columns["dense"][:, 0]]


async def turns(number: int = 5) -> None:
    """Let everything that can run on this loop run."""
    for _ in range(number):
        await asyncio.sleep(0)


# Answers


def test_answers_come_in_the_order_of_the_inputs() -> None:
    async def main() -> None:
        async with started(running_of()) as running:
            computed = await answer(running, ["four", "a", "seventh", ""])
            assert lengths_of(computed) == computed.num_tokens.tolist() == [4, 1, 7, 0]
            assert computed.columns["dense"].dtype == np.float32

    run(main())


def test_every_output_that_is_asked_for_is_answered() -> None:
    async def main() -> None:
        async with started(running_of("kind=embedder")) as running:
            computed = await answer(running, ["aab", "", "aab"], outputs=("multivector", "dense", "sparse"))
            assert computed.columns.keys() == {"multivector", "dense", "sparse"}
            assert lengths_of(computed) == [3, 0, 3]
            assert [rows[:, 0].tolist() for rows in computed.columns["multivector"]] == [
                [97, 97, 98],
                [],
                [97, 97, 98],
            ]
            assert [row.values.tolist() for row in computed.columns["sparse"]] == [[2, 1], [], [2, 1]]

    run(main())


def test_duplicates_are_computed_once_and_counted_each_time() -> None:
    async def main() -> None:
        async with started(running_of()) as running:
            computed = await answer(running, ["aa", "b", "aa", "b", "aa"])
            assert lengths_of(computed) == computed.num_tokens.tolist() == [2, 1, 2, 1, 2]
            assert (running.stats.num_items, running.stats.num_tokens) == (2, 3)

    run(main())


def test_pairs_are_equal_where_both_texts_are() -> None:
    pairs = [Pair("q", "four"), Pair("qf", "our"), Pair("q", "four"), Pair("q", "a")]

    async def main() -> None:
        async with started(running_of("kind=reranker")) as running:
            computed = await answer(running, pairs)
            assert computed.columns["dense"][:, 0].tolist() == [4, 3, 4, 1]
            assert running.stats.num_items == 3

    run(main())


@pytest.mark.parametrize("name", ["dense", "multivector", "sparse"])
def test_answers_of_duplicates_do_not_share_memory(name: Any) -> None:
    """Changing one of them in place, as callers who normalise do, changed the others too."""

    async def main() -> None:
        async with started(running_of("kind=embedder")) as running:
            column = (await answer(running, ["aa", "aa"], outputs=(name,))).columns[name]
            first, second = (each.values if name == "sparse" else each for each in column)
            expected = second.copy()
            first *= 0
            assert second.tolist() == expected.tolist()
            assert expected.any()

    run(main())


@pytest.mark.parametrize("num_texts", [INPUTS_PER_CHUNK, INPUTS_PER_CHUNK + 1, 5 * INPUTS_PER_CHUNK + 3])
def test_a_request_of_several_chunks_keeps_its_order(num_texts: int) -> None:
    """More characters than are prepared on the event loop, so that chunks overtake each other."""
    texts = [f"{number:050}" + "x" * (number % 97) for number in range(num_texts)]
    running = running_of("kind=embedder", max_batch_tokens=700, device_id=(0, 1))
    running._residence.model = replace(running.model, num_tokenizer_threads=4)

    async def main() -> None:
        async with started(running):
            computed = await answer(running, texts, outputs=("dense", "multivector"))
            assert lengths_of(computed) == [len(text) for text in texts]
            assert [len(rows) for rows in computed.columns["multivector"]] == [len(text) for text in texts]
            assert computed.num_tokens.tolist() == [len(text) for text in texts]
            assert running.stats.num_batches > 1

    run(main())


@pytest.mark.parametrize(
    "make",
    [lambda n: Picture(np.zeros((n, 2, 3), dtype=np.uint8)), lambda n: Clip(np.zeros(16_000 * (n - 1)))],
)
def test_media_are_prepared_a_few_at_a_time_and_never_on_the_event_loop(make: Any) -> None:
    """An image takes milliseconds, in which no other request would move."""
    chunks: list[tuple[int, str]] = []

    def prepare(inputs: Sequence[Input], options: InputOptions) -> list[Encoded]:
        chunks.append((len(inputs), threading.current_thread().name))
        return fake.prepare(inputs, options)

    async def main() -> None:
        async with started(running_of("kind=embedder", prepare=prepare)) as running:
            first = make(3)
            inputs = [first, make(1), first, make(4), make(2)]
            assert lengths_of(await answer(running, inputs)) == [3, 1, 3, 4, 2]

    run(main())
    assert [num for num, _ in chunks] == [MEDIA_PER_CHUNK, MEDIA_PER_CHUNK, 5 - 2 * MEDIA_PER_CHUNK]
    assert all(thread.startswith("infinity-tokenizer") for _, thread in chunks)


@pytest.mark.parametrize("make", [str, lambda text: Pair(text[:3], text[3:])])
def test_few_characters_are_prepared_at_once_and_many_on_a_thread(make: Any) -> None:
    threads: list[bool] = []

    def prepare(inputs: Sequence[Input], options: InputOptions) -> list[Encoded]:
        threads.append(threading.current_thread() is threading.main_thread())
        return fake.prepare(inputs, options)

    async def main() -> None:
        async with started(running_of(prepare=prepare)) as running:
            await answer(running, [make("x" * INLINE_CHARS)])
            await answer(running, [make("x" * (INLINE_CHARS // 2)), make("x" * (INLINE_CHARS // 2 + 1))])

    run(main())
    assert threads == [True, False]


@pytest.mark.parametrize(
    ("num_texts", "prompt", "is_allowed", "expected"),
    [
        (MAX_INLINE_INPUTS, "p" * (INLINE_CHARS // MAX_INLINE_INPUTS - 2), True, True),
        (MAX_INLINE_INPUTS, "p" * (INLINE_CHARS // MAX_INLINE_INPUTS), True, False),
        (MAX_INLINE_INPUTS + 1, "", True, False),
        (1, "", False, False),
    ],
)
def test_prompts_and_many_texts_and_models_that_lock_are_not_prepared_at_once(
    num_texts: int, prompt: str, is_allowed: bool, expected: bool
) -> None:
    threads: list[bool] = []

    def prepare(inputs: Sequence[Input], options: InputOptions) -> list[Encoded]:
        threads.append(threading.current_thread() is threading.main_thread())
        return fake.prepare(inputs, options)

    running = running_of(prepare=prepare)
    running._residence.model = replace(running.model, prepares_inline=is_allowed)

    async def main() -> None:
        async with started(running):
            await answer(running, [f"{number:02}" for number in range(num_texts)], prompt=prompt)

    run(main())
    assert threads == [expected]


def test_two_hundred_requests_at_once_each_get_their_own_rows() -> None:
    requests = [
        ["x" * (1 + (number * 7 + row) % 90) for row in range(1 + number % 9)] for number in range(200)
    ]

    async def main() -> None:
        async with started(running_of(max_batch_tokens=500, device_id=(0, 1))) as running:
            answers = await asyncio.gather(*(embed(running, texts) for texts in requests))
            assert answers == [[len(text) for text in texts] for texts in requests]
            assert running.overload_status() == (0, 0, 0)

    run(main())


def test_requests_of_different_options_share_batches() -> None:
    running, backend = gated("kind=embedder")

    async def main() -> None:
        async with started(running):
            first = asyncio.create_task(embed(running, ["first"]))
            await backend.wait_until_reached()
            others = [
                asyncio.create_task(answer(running, ["ab"], prompt="query: ", task="query")),
                asyncio.create_task(answer(running, ["ab"], outputs=("sparse",))),
            ]
            await turns()
            backend.is_open.set()
            dense, sparse = await asyncio.gather(*others)
            await first
            assert lengths_of(dense) == [9]
            assert sparse.columns["sparse"][0].indices.tolist() == [97, 98]
            assert running.stats.num_batches == 2

    run(main())


# Errors and whom they name


@pytest.mark.parametrize("before", [["a"], ["a"] * 5, [f"text {number}" for number in range(200)]])
def test_a_refused_text_is_named_by_its_place_in_the_request(before: list[str]) -> None:
    """Not by its place among the distinct texts, or in the chunk that was tokenized."""

    async def main() -> None:
        async with started(running_of()) as running:
            texts = [*before, "x" * (fake.MAX_TOKENS + 1)]
            with pytest.raises(InputTooLong, match=rf"^input {len(before)} has 8193 tokens") as raised:
                await embed(running, texts, truncation="off")
            assert raised.value.position == len(before)
            # The queue may still hold texts of it, which no device will see.
            assert (running.num_accepted_items, running.overload_status().results_absolute) == (0, 0)

    run(main())


@pytest.mark.parametrize("fault", ["fail_on", "wrong_count_on", "nan_on"])
@pytest.mark.parametrize("before", [[], ["a"] * 5, [f"text {number}" for number in range(200)]])
def test_a_failed_text_is_named_by_its_place_in_the_request(fault: str, before: list[str]) -> None:
    async def main() -> None:
        async with started(running_of(f"{fault}=poison")) as running:
            with pytest.raises(BackendFailed, match=rf"^input {len(before)} ") as raised:
                await embed(running, [*before, "poison", "poison", "z"])
            assert raised.value.position == len(before)
            assert raised.value.__cause__ is not None

    run(main())


@pytest.mark.parametrize(("places", "expected"), [(None, 1), ([7, 8, 9], 8)])
def test_a_refused_passage_keeps_its_own_place(places: list[int] | None, expected: int) -> None:
    """It was looked up among the inputs, of which there is one."""

    def refuse(inputs: Sequence[Input], options: InputOptions) -> list[Encoded]:
        raise BadInput("has no tokens", position=1)

    async def main() -> None:
        async with started(running_of("kind=embedder", prepare=refuse)) as running, running.admitted(3):
            with pytest.raises(BadInput, match=f"^input {expected} has no tokens"):
                await running.compute(
                    [Passages(("a", "", "b"))], InputOptions(outputs=("chunks",)), places=places
                )

    run(main())


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(
        st.integers(1, 40).map(lambda length: "x" * length) | st.text("ab", min_size=1), min_size=1
    ),
    factor=st.sampled_from([1, INPUTS_PER_CHUNK]),
    missing=st.integers(-3, 3),
)
def test_a_request_is_served_exactly_when_all_its_tokens_are_within_the_limit(
    texts: list[str], factor: int, missing: int
) -> None:
    """Duplicates count each time, though they are computed once; nothing of a refused request waits on."""
    texts = [f"{text}{number}" for number in range(factor) for text in texts]
    num_tokens = sum(map(len, texts))
    limit = max(1, num_tokens - missing)

    async def main() -> None:
        async with started(running_of(max_request_tokens=limit)) as running:
            if num_tokens <= limit:
                assert await embed(running, texts) == [len(text) for text in texts]
            else:
                with pytest.raises(BadInput, match=rf"tokens or more, the limit is {limit};") as raised:
                    await embed(running, texts)
                assert raised.value.position is None
                assert limit < int(raised.value.reason.split()[3]) <= num_tokens
            assert (running.num_accepted_items, running.overload_status().results_absolute) == (0, 0)
            assert await embed(running, ["x"]) == [1]

    run(main())


def test_a_request_over_the_limit_ends_while_its_first_chunks_are_computed() -> None:
    running, backend = gated(max_request_tokens=3000, max_batch_tokens=100)
    texts = [f"{number:040}" for number in range(4 * INPUTS_PER_CHUNK)]

    async def main() -> None:
        async with started(running):
            with pytest.raises(BadInput, match="the request has 5120 tokens or more, the limit is 3000"):
                await embed(running, texts)
            assert running.overload_status().results_absolute == 0
            backend.is_open.set()
            assert await embed(running, ["x"]) == [1]

    run(main())
    assert len(backend.seen) < len(texts)


def test_all_that_one_request_computes_counts_and_another_request_begins_anew() -> None:
    async def main() -> None:
        async with started(running_of(max_request_tokens=5)) as running:
            async with running.admitted(2):
                await running.compute(["abc"], InputOptions())
                with pytest.raises(BadInput, match="has 6 tokens"):
                    await running.compute(["abc"], InputOptions())
            assert await embed(running, ["abcde"]) == [5]

    run(main())


def test_a_failed_pair_is_named_by_its_place_in_the_request() -> None:
    pairs = [Pair("q", "a"), Pair("q", "a"), Pair("q", "poison"), Pair("q", "poison")]

    async def main() -> None:
        async with started(running_of("kind=reranker&nan_on=poison")) as running:
            with pytest.raises(BackendFailed, match=r"^input 2 gives NaN"):
                await answer(running, pairs)

    run(main())


def test_what_is_a_number_in_full_precision_only_is_answered_all_the_same() -> None:
    async def main() -> None:
        async with started(running_of("nan_in_half_on=hot")) as running:
            assert await embed(running, ["a", "hot", "hot!", "bb"]) == [1, 3, 4, 2]

    run(main())


def test_a_failing_text_fails_its_request_alone() -> None:
    async def main() -> None:
        async with started(running_of("fail_on=poison")) as running:
            requests = [embed(running, [f"text {number}"]) for number in range(9)]
            answers = await asyncio.gather(
                *requests, embed(running, ["fine", "poison"]), return_exceptions=True
            )
            assert isinstance(answers.pop(), BackendFailed)
            assert answers == [[6]] * 9
            assert running.is_running

    run(main())


@pytest.mark.parametrize("fault", ["fail_on", "wrong_count_on", "nan_on"])
def test_room_is_given_back_after_a_failure(fault: str) -> None:
    async def main() -> None:
        async with started(running_of(f"{fault}=poison", max_queue_items=2)) as running:
            for _ in range(3):
                with pytest.raises(BackendFailed):
                    await embed(running, ["poison", "fine"])
            assert await embed(running, ["a", "bb"]) == [1, 2]

    run(main())


@pytest.mark.usefixtures("dies_for_good")
def test_a_dead_device_thread_fails_what_waits_and_refuses_what_comes() -> None:
    async def main() -> None:
        async with started(running_of("die_on=poison")) as running:
            with pytest.raises(EngineNotReady, match="device thread died"):
                await embed(running, ["poison"])
            assert running.is_dead
            assert not running.is_running
            with pytest.raises(EngineNotReady):
                await embed(running, ["fine"])

    run(main())


@pytest.mark.usefixtures("dies_for_good")
def test_an_error_that_ends_many_requests_has_a_traceback_of_each_of_its_own() -> None:
    """All of them raised one exception object, whose traceback grew with every request."""
    running, backend = gated("die_on=poison")

    async def main() -> None:
        async with started(running):
            first = asyncio.create_task(embed(running, ["poison"]))
            await backend.wait_until_reached()
            others = [asyncio.create_task(embed(running, [f"text {number}"])) for number in range(50)]
            await turns()
            backend.is_open.set()
            errors = await asyncio.gather(first, *others, return_exceptions=True)
            assert all(isinstance(error, EngineNotReady) for error in errors)
            depths = [len(traceback.extract_tb(error.__traceback__)) for error in errors]  # type: ignore[union-attr]
            assert max(depths) <= 5

    run(main())


# Admission


def test_a_request_that_does_not_fit_into_the_queue_is_refused_whole() -> None:
    running, backend = gated(max_queue_items=3)

    async def main() -> None:
        async with started(running):
            waiting = asyncio.create_task(embed(running, ["a", "a"]))
            await backend.wait_until_reached()
            assert not running.is_overloaded()
            with pytest.raises(Overloaded, match="2 of 3 inputs wait"):
                await embed(running, ["b", "c"])
            also_waiting = asyncio.create_task(embed(running, ["d"]))
            await turns()
            assert running.is_overloaded()
            with pytest.raises(Overloaded):
                await embed(running, ["e"])
            assert running.overload_status().results_absolute == 2
            backend.is_open.set()
            await asyncio.gather(waiting, also_waiting)
            assert not running.is_overloaded()
            await embed(running, ["b", "c", "e"])

    run(main())
    assert backend.seen == ["a", "d", "b", "c", "e"]


def test_a_request_that_could_never_fit_is_bad_input() -> None:
    async def main() -> None:
        async with started(running_of(max_queue_items=3)) as running:
            with pytest.raises(BadInput, match="4 inputs, more than the 3"):
                await embed(running, ["a"] * 4)

    run(main())


def test_too_many_waiting_tokens_refuse_the_next_request() -> None:
    running, backend = gated(max_queue_tokens=10, batch_size=1)

    async def main() -> None:
        async with started(running):
            requests = [asyncio.create_task(embed(running, ["on the device"]))]
            await backend.wait_until_reached()
            requests.append(asyncio.create_task(embed(running, ["ten tokens"])))
            await turns()
            assert running.num_waiting_tokens == 10
            with pytest.raises(Overloaded):
                await embed(running, ["a"])
            backend.is_open.set()
            await asyncio.gather(*requests)
            await embed(running, ["a"])

    run(main())


def test_the_status_tells_how_full_the_queue_is() -> None:
    running, backend = gated(max_queue_items=8, batch_size=1)

    async def main() -> None:
        async with started(running):
            request = asyncio.create_task(embed(running, ["a", "b", "c"]))
            await backend.wait_until_reached()
            assert running.overload_status() == (2 / 8, 2, 1)
            backend.is_open.set()
            await request

    run(main())


def test_a_request_that_grows_takes_room_for_all_of_it_while_the_model_stops_too() -> None:
    async def main() -> None:
        running = running_of(max_queue_items=5)
        running.start()
        async with running.admitted(2):
            stopping = asyncio.create_task(running.stop(DRAIN_TIMEOUT_S))
            await turns()
            with running.widened(2, 5):
                assert running.num_accepted_items == 5
                with running.widened(1, 1):
                    pass
                with pytest.raises(Overloaded), running.widened(1, 2):
                    pass
            with pytest.raises(BadInput, match="6 inputs, more than the 5"), running.widened(2, 6):
                pass
            assert running.num_accepted_items == 2
        await stopping

    run(main())


# Cancelling


def test_when_one_side_fails_the_other_has_ended_before_it_is_told() -> None:
    ended: list[str] = []

    async def fail() -> None:
        await asyncio.sleep(0)
        raise BadInput("is bad")

    async def wait() -> None:
        try:
            await asyncio.sleep(PATIENCE_S)
        finally:
            await asyncio.sleep(0)
            ended.append("the other")

    async def main() -> None:
        with pytest.raises(BadInput, match="is bad"):
            await gather_or_cancel([wait(), fail()])
        assert ended == ["the other"]

    run(main())


def test_chunks_of_a_request_that_failed_on_the_device_are_not_prepared() -> None:
    chunks: list[str] = []
    is_failed = threading.Event()

    def prepare(inputs: Sequence[Input], options: InputOptions) -> list[Encoded]:
        chunks.append(str(inputs[0])[:6])
        if len(chunks) == 2:
            assert is_failed.wait(PATIENCE_S)
        return fake.prepare(inputs, options)

    async def main() -> None:
        async with started(running_of("fail_on=poison", prepare=prepare)) as running:
            texts = ["poison", *(f"{number:050}" for number in range(5 * INPUTS_PER_CHUNK - 1))]
            request = asyncio.create_task(embed(running, texts))
            while not running.stats.num_failed_items:
                await asyncio.sleep(0.001)
            with running._pool._changed:  # counted and told under one lock
                is_failed.set()
            with pytest.raises(BackendFailed):
                await request

    run(main())
    assert len(chunks) <= 2


def test_a_cancelled_request_takes_its_texts_with_it_and_gives_its_room_back() -> None:
    running, backend = gated(max_queue_items=4, batch_size=1)

    async def main() -> None:
        async with started(running):
            first = asyncio.create_task(embed(running, ["first"]))
            await backend.wait_until_reached()
            cancelled = asyncio.create_task(embed(running, ["x", "y", "z"]))
            await turns()
            with pytest.raises(Overloaded):
                await embed(running, ["last"])
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            last = asyncio.create_task(embed(running, ["last"]))
            await turns()
            backend.is_open.set()
            await asyncio.gather(first, last)
            assert running.overload_status() == (0, 0, 0)

    run(main())
    assert backend.seen == ["first", "last"]


def test_a_request_that_is_cancelled_while_it_is_tokenized_never_reaches_the_device() -> None:
    prepare = GatedPrepare()
    running, backend = gated(prepare=prepare)
    backend.is_open.set()

    async def main() -> None:
        async with started(running):
            request = asyncio.create_task(embed(running, ["slow" + "x" * 2000]))
            await prepare.wait_until_reached()
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            prepare.is_open.set()
            await embed(running, ["other"])

    run(main())
    assert backend.seen == ["other"]


def test_when_one_chunk_is_refused_the_others_never_reach_the_device() -> None:
    running, backend = gated(max_batch_tokens=10)
    backend.is_open.set()
    texts = ["x" * 9000, *(f"{number:040}" for number in range(3 * INPUTS_PER_CHUNK))]

    async def main() -> None:
        async with started(running):
            with pytest.raises(InputTooLong):
                await embed(running, texts, truncation="off")
            seen = len(backend.seen)
            await embed(running, ["other"])
            assert backend.seen[seen:][-1] == "other"
            assert len(backend.seen) - seen <= 2

    run(main())


# Starting and stopping


def test_a_model_that_is_not_started_refuses() -> None:
    running = running_of()

    assert not running.is_running
    assert not running.is_dead
    with pytest.raises(EngineNotReady, match="not started"):
        run(embed(running, ["a"]))
    run(running.stop(DRAIN_TIMEOUT_S))


def test_a_running_model_cannot_be_started_again() -> None:
    async def main() -> None:
        async with started(running_of()) as running:
            with pytest.raises(EngineNotReady):
                running.start()
            assert running.is_running
            await embed(running, ["a"])

    run(main())


def test_a_model_can_be_stopped_and_started_again_on_other_event_loops() -> None:
    running = running_of()

    async def use() -> None:
        async with started(running):
            assert await embed(running, ["aa", "b"]) == [2, 1]
        assert not running.is_running
        with pytest.raises(EngineNotReady):
            await embed(running, ["a"])

    for _ in range(3):
        run(use())
    assert running.stats.num_items == 6


@pytest.mark.usefixtures("dies_for_good")
def test_a_model_whose_thread_died_can_be_started_again() -> None:
    running = running_of("die_on=poison")

    async def main() -> None:
        async with started(running):
            with pytest.raises(EngineNotReady):
                await embed(running, ["poison"])
        async with started(running):
            assert running.is_running
            assert not running.is_dead
            await embed(running, ["fine"])

    run(main())


def test_a_model_outlives_the_event_loop_that_started_it() -> None:
    running = running_of()
    running.start()
    assert run(embed(running, ["aa"])) == [2]
    run(running.stop(DRAIN_TIMEOUT_S))


def test_stopping_finishes_the_requests_that_wait() -> None:
    running, backend = gated(batch_size=2)

    async def main() -> None:
        running.start()
        requests = [asyncio.create_task(embed(running, [f"text {number}", "x"])) for number in range(20)]
        await backend.wait_until_reached()
        stopping = asyncio.create_task(running.stop(DRAIN_TIMEOUT_S))
        await turns()
        assert not running.is_running
        with pytest.raises(EngineNotReady, match="shutting down"):
            await embed(running, ["late"])
        backend.is_open.set()
        await stopping
        for number, request in enumerate(requests):
            assert request.done()
            assert request.result() == [len(f"text {number}"), 1]

    run(main())
    assert "late" not in backend.seen


def test_stopping_finishes_requests_that_are_still_tokenized() -> None:
    """The queue was closed at once, and what came out of the tokenizer afterwards was refused."""
    prepare = GatedPrepare()
    running, backend = gated(prepare=prepare)

    async def main() -> None:
        running.start()
        slow = asyncio.create_task(embed(running, ["slow" + "x" * 2000]))
        await prepare.wait_until_reached()
        quick = asyncio.create_task(embed(running, ["quick"]))
        await backend.wait_until_reached()
        stopping = asyncio.create_task(running.stop(DRAIN_TIMEOUT_S))
        await turns()
        backend.is_open.set()
        assert await quick == [5]
        prepare.is_open.set()
        await stopping
        assert await slow == [2004]

    run(main())


def test_stopping_finishes_a_request_that_has_just_been_accepted() -> None:
    running = running_of()

    async def main() -> None:
        running.start()
        request = asyncio.create_task(embed(running, ["a", "bb"]))
        await asyncio.sleep(0)
        await running.stop(DRAIN_TIMEOUT_S)
        assert await request == [1, 2]

    run(main())


def test_at_the_deadline_waiting_requests_fail_and_a_batch_on_the_device_gets_a_moment_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running_model_module, "BATCH_GRACE_S", PATIENCE_S)
    running, backend = gated(batch_size=1)

    async def main() -> None:
        running.start()
        on_the_device = asyncio.create_task(embed(running, ["aa"]))
        await backend.wait_until_reached()
        waiting = asyncio.create_task(embed(running, ["b"]))
        await turns()
        stopping = asyncio.create_task(running.stop(0))
        with pytest.raises(EngineNotReady, match="not finished in time"):
            await waiting
        backend.is_open.set()
        assert await on_the_device == [2]
        await stopping

    run(main())
    assert backend.seen == ["aa"]


@pytest.mark.parametrize("also_waiting", [0, 5])
def test_a_device_that_hangs_does_not_keep_its_request_from_failing(
    also_waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request whose batch hung on the device was never answered."""
    monkeypatch.setattr(running_model_module, "BATCH_GRACE_S", 0)
    running, backend = gated(batch_size=1)

    async def main() -> None:
        running.start()
        requests = [asyncio.create_task(embed(running, [f"text {n}"])) for n in range(1 + also_waiting)]
        await backend.wait_until_reached()
        await running.stop(0)
        errors = await asyncio.gather(*requests, return_exceptions=True)
        assert all(isinstance(error, EngineNotReady) for error in errors)
        assert running.overload_status() == (0, 0, 0)
        with pytest.raises(EngineNotReady, match="still running"):
            running.start()
        backend.is_open.set()

    run(main())
    assert backend.seen == ["text 0"]


def test_at_the_deadline_a_request_that_is_still_tokenized_is_refused() -> None:
    prepare = GatedPrepare()
    running, backend = gated(prepare=prepare)

    async def main() -> None:
        running.start()
        request = asyncio.create_task(embed(running, ["slow" + "x" * 2000]))
        await prepare.wait_until_reached()
        await running.stop(0)
        prepare.is_open.set()
        with pytest.raises(EngineNotReady):
            await request

    run(main())
    assert backend.seen == []


def test_after_the_deadline_work_for_threads_is_refused_and_what_waits_for_one_too() -> None:
    """The first was a RuntimeError of the pool, the second ran on behind the stop."""
    is_reached, is_open = threading.Event(), threading.Event()
    ran: list[int] = []

    def hold() -> None:
        is_reached.set()
        assert is_open.wait(PATIENCE_S)

    async def main() -> None:
        running = running_of()
        running.start()
        async with running.admitted(1):
            holding = asyncio.create_task(running.run_on_thread(hold))
            waiting = asyncio.create_task(running.run_on_thread(lambda: ran.append(1)))
            assert await asyncio.to_thread(is_reached.wait, PATIENCE_S)
            await running.stop(0)
            with pytest.raises(EngineNotReady):
                await waiting
            with pytest.raises(EngineNotReady):
                await running.run_on_thread(lambda: ran.append(2))
            is_open.set()
            await holding

    run(main())
    assert ran == []


def test_a_request_that_is_cancelled_during_the_stop_takes_its_texts_with_it() -> None:
    running, backend = gated(batch_size=1)

    async def main() -> None:
        running.start()
        request = asyncio.create_task(embed(running, ["a", "b", "c"]))
        await backend.wait_until_reached()
        stopping = asyncio.create_task(running.stop(DRAIN_TIMEOUT_S))
        await turns()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        backend.is_open.set()
        await stopping

    run(main())
    assert backend.seen == ["a"]


def test_a_stop_that_is_cancelled_fails_what_waits() -> None:
    running, backend = gated()

    async def main() -> None:
        running.start()
        request = asyncio.create_task(embed(running, ["a"]))
        await backend.wait_until_reached()
        stopping = asyncio.create_task(running.stop(DRAIN_TIMEOUT_S))
        await turns()
        stopping.cancel()
        with pytest.raises(EngineNotReady):
            await request
        backend.is_open.set()

    run(main())


def test_stopping_twice_is_harmless() -> None:
    async def main() -> None:
        running = running_of()
        running.start()
        await asyncio.gather(running.stop(DRAIN_TIMEOUT_S), running.stop(DRAIN_TIMEOUT_S))
        await running.stop(DRAIN_TIMEOUT_S)

    run(main())


def test_no_thread_is_left_after_the_stop() -> None:
    async def main() -> None:
        async with started(running_of(device_id=(0, 1))) as running:
            await embed(running, ["x" * 2000])

    before = set(threading.enumerate())
    run(main())
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), thread.name


def test_an_event_loop_that_ends_with_a_request_on_the_device_disturbs_nobody() -> None:
    running, backend = gated()

    async def leave() -> None:
        running.start()
        asyncio.create_task(embed(running, ["left"]))  # noqa: RUF006 - the loop ends before it does
        await backend.wait_until_reached()

    async def use() -> None:
        assert await embed(running, ["aa"]) == [2]
        await running.stop(DRAIN_TIMEOUT_S)

    run(leave())
    backend.is_open.set()
    run(use())


def test_an_event_loop_that_is_closed_under_a_request_does_not_hurt_the_device_thread() -> None:
    running, backend = gated()
    loop = asyncio.new_event_loop()
    running.start()
    left = loop.create_task(embed(running, ["left"]))
    loop.run_until_complete(backend.wait_until_reached())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    backend.is_open.set()

    assert run(embed(running, ["aa"])) == [2]
    assert not left.done()
    del left
    gc.collect()
    run(running.stop(DRAIN_TIMEOUT_S))


# Progress


@dataclass
class CountingBar:
    is_shown = True
    num_done: int = 0
    is_closed: bool = False

    def update(self, num_items: int) -> None:
        self.num_done += num_items

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize(("last", "is_answered"), [("fine", True), ("poison", False)])
def test_a_progress_bar_counts_the_texts_and_is_closed_in_any_case(
    last: str, is_answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bar = CountingBar()
    monkeypatch.setattr(running_model_module, "open_progress_bar", lambda num_items, description: bar)

    async def main() -> None:
        async with started(running_of("fail_on=poison")) as running:
            await asyncio.gather(embed(running, ["a", "b", "a", last]), return_exceptions=True)

    run(main())
    assert bar.is_closed
    assert (bar.num_done == 3) is is_answered


@pytest.mark.parametrize("is_option", [True, False])
def test_a_request_whose_time_is_over_is_dropped_and_gives_its_room_back(is_option: bool) -> None:
    running, backend = gated(batch_size=1, request_timeout_s=1 if is_option else 0)

    async def main() -> None:
        async with started(running):
            first = asyncio.create_task(embed(running, ["computed too late"]))
            await backend.wait_until_reached()
            with calling(timeout_s=None if is_option else 0.05), pytest.raises(DeadlineExceeded):
                await embed(running, ["never computed", "this neither"])
            backend.is_open.set()
            if is_option:
                with pytest.raises(DeadlineExceeded):
                    await first
            else:
                assert await first == [17]
            assert running.num_accepted_items == 0
            assert await embed(running, ["abc"]) == [3]
        assert backend.seen == ["computed too late", "abc"]

    run(main())


def test_a_request_says_how_much_time_it_has_and_may_have_more_than_the_option() -> None:
    running, backend = gated(request_timeout_s=1)

    async def main() -> None:
        async with started(running):
            with calling(timeout_s=PATIENCE_S):
                request = asyncio.create_task(embed(running, ["abc"]))
            await asyncio.sleep(1.2)
            backend.is_open.set()
            assert await request == [3]

    run(main())


def test_a_query_is_computed_before_the_bulk_work_that_came_before_it() -> None:
    running, backend = gated(batch_size=1)

    async def main() -> None:
        async with started(running):
            with calling(lane="bulk"):
                bulk = asyncio.create_task(embed(running, [f"passage {number:03}" for number in range(50)]))
            await backend.wait_until_reached()
            await turns()
            query = asyncio.create_task(embed(running, ["query"]))
            await turns()
            backend.is_open.set()
            await asyncio.gather(bulk, query)
        # Before it: the one on the device, and the one whose turn it was.
        assert backend.seen.index("query") <= 2

    run(main())


def test_many_requests_of_one_client_do_not_hold_up_another() -> None:
    running, backend = gated(batch_size=1)

    async def main() -> None:
        async with started(running):
            with calling(client="greedy"):
                many = [asyncio.create_task(embed(running, [f"text {number:03}"])) for number in range(50)]
            await backend.wait_until_reached()
            await turns()
            with calling(client="modest"):
                few = [asyncio.create_task(embed(running, [f"mine {number:03}"])) for number in range(5)]
            await turns()
            backend.is_open.set()
            await asyncio.gather(*many, *few)
        places = [backend.seen.index(f"mine {number:03}") for number in range(5)]
        assert max(places) <= 2 * 5 + 2, "the two take turns"

    run(main())


def test_a_request_that_would_wait_too_long_is_refused_and_told_when_to_come_again() -> None:
    """Forty texts, one a batch of a twentieth of a second, are two seconds of work."""
    running = running_of("delay_s=0.05", batch_size=1, max_queue_wait_s=1)

    async def main() -> None:
        async with started(running):
            await embed(running, [f"first {number}" for number in range(10)])
            request = asyncio.create_task(embed(running, [f"text {number}" for number in range(40)]))
            await turns()
            with pytest.raises(Overloaded, match="would wait for about") as caught:
                await embed(running, [f"another {number}" for number in range(10)])
            assert 1 <= caught.value.retry_after_s <= 3
            assert running.num_refused_requests == 1
            await request
            assert await embed(running, ["abc"]) == [3]

    run(main())


def test_a_device_thread_that_dies_comes_back_and_only_the_guilty_text_fails() -> None:
    async def main() -> None:
        async with started(running_of("die_on=poison")) as running:
            requests = [embed(running, [f"text {number}"]) for number in range(9)]
            answers = await asyncio.gather(*requests, embed(running, ["poison"]), return_exceptions=True)
            assert isinstance(answers.pop(), BackendFailed)
            assert answers == [[6]] * 9
            assert running.is_running
            assert not running.is_dead
            assert running.stats.num_restarts >= 1
            assert await embed(running, ["abc"]) == [3]
            assert running.is_ready

    run(main())


def test_a_device_that_hangs_is_given_up_and_told_of() -> None:
    running, backend = gated(batch_timeout_s=1)
    told = threading.Event()
    running.on_death = told.set

    async def main() -> None:
        async with started(running):
            with pytest.raises(EngineNotReady, match="took over 1 s"):
                await embed(running, ["abc"])
            assert await asyncio.to_thread(told.wait, PATIENCE_S)
            assert running.is_dead
        backend.is_open.set()

    run(main())
