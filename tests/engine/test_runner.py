"""Compute the inputs of requests: outputs, duplicates, chunks and threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from infinity_emb.backends import fake
from infinity_emb.engine import runner
from infinity_emb.engine.runner import (
    INLINE_CHARS,
    INPUTS_PER_CHUNK,
    MAX_INLINE_INPUTS,
    MEDIA_PER_CHUNK,
    UniqueInputs,
)
from infinity_emb.items import (
    AudioInput,
    Encoded,
    ImageInput,
    InputOptions,
    Pair,
    RequestInput,
)
from infinity_emb.scheduling import fair_threads
from tests.support.event_loop import run
from tests.support.fake_engines import (
    assert_is_idle,
    compute,
    embed,
    fake_parts,
    gated_parts,
    read_lengths,
    run_ready_tasks,
    started,
)


def test_outputs_have_the_order_of_the_inputs() -> None:
    async def main() -> None:
        async with started(fake_parts()) as parts:
            computed = await compute(parts, ["four", "a", "seventh", ""])
            assert read_lengths(computed) == computed.num_tokens.tolist() == [4, 1, 7, 0]
            assert computed.by_name["dense"].dtype == np.float32

    run(main())


def test_all_requested_outputs_are_returned() -> None:
    async def main() -> None:
        async with started(fake_parts("kind=embedder")) as parts:
            computed = await compute(parts, ["aab", "", "aab"], outputs=("multivector", "dense", "sparse"))
            assert computed.by_name.keys() == {"multivector", "dense", "sparse"}
            assert read_lengths(computed) == [3, 0, 3]
            assert [rows[:, 0].tolist() for rows in computed.by_name["multivector"]] == [
                [97, 97, 98],
                [],
                [97, 97, 98],
            ]
            assert [row.values.tolist() for row in computed.by_name["sparse"]] == [[2, 1], [], [2, 1]]

    run(main())


def test_requests_of_one_turn_of_the_event_loop_are_computed_in_one_batch() -> None:
    """Each woke the worker thread by itself, which then computed it alone."""

    async def main() -> None:
        async with started(fake_parts()) as parts:
            await embed(parts, ["first"])
            while not parts.host.pool.queue.num_idle_replicas:
                await asyncio.sleep(0.001)
            await asyncio.gather(*(embed(parts, [f"{number}"]) for number in range(20)))
            assert parts.host.pool.stats.num_batches == 2

    run(main())


def test_duplicates_are_computed_once_and_counted_each_time() -> None:
    async def main() -> None:
        async with started(fake_parts()) as parts:
            computed = await compute(parts, ["aa", "b", "aa", "b", "aa"])
            assert read_lengths(computed) == computed.num_tokens.tolist() == [2, 1, 2, 1, 2]
            assert (parts.host.pool.stats.num_items, parts.host.pool.stats.num_tokens) == (2, 3)

    run(main())


def test_pairs_are_duplicates_when_both_texts_are_equal() -> None:
    pairs = [Pair("q", "four"), Pair("qf", "our"), Pair("q", "four"), Pair("q", "a")]

    async def main() -> None:
        async with started(fake_parts("kind=reranker")) as parts:
            computed = await compute(parts, pairs)
            assert computed.by_name["dense"][:, 0].tolist() == [4, 3, 4, 1]
            assert parts.host.pool.stats.num_items == 3

    run(main())


@pytest.mark.parametrize("name", ["dense", "multivector", "sparse"])
def test_outputs_of_duplicates_do_not_share_memory(name: Any) -> None:
    """Changing one of them in place, as callers who normalise do, changed the others too."""

    async def main() -> None:
        async with started(fake_parts("kind=embedder")) as parts:
            column = (await compute(parts, ["aa", "aa"], outputs=(name,))).by_name[name]
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
    parts = fake_parts("kind=embedder", max_batch_tokens=700, device_id=(0, 1), model_num_tokenizer_threads=4)

    async def main() -> None:
        async with started(parts):
            computed = await compute(parts, texts, outputs=("dense", "multivector"))
            assert read_lengths(computed) == [len(text) for text in texts]
            assert [len(rows) for rows in computed.by_name["multivector"]] == [len(text) for text in texts]
            assert computed.num_tokens.tolist() == [len(text) for text in texts]
            assert parts.host.pool.stats.num_batches > 1

    run(main())


@pytest.mark.parametrize(
    "make",
    [
        lambda n: ImageInput(np.zeros((n, 2, 3), dtype=np.uint8)),
        lambda n: AudioInput(np.zeros(16_000 * (n - 1))),
    ],
)
def test_media_are_encoded_a_few_at_a_time_and_never_on_the_event_loop(make: Any) -> None:
    """An image takes milliseconds, in which no other request would move."""
    chunks: list[tuple[int, str]] = []

    def encode(inputs: Sequence[RequestInput], options: InputOptions) -> list[Encoded]:
        chunks.append((len(inputs), threading.current_thread().name))
        return fake.encode(inputs, options)

    async def main() -> None:
        async with started(fake_parts("kind=embedder", encode=encode)) as parts:
            first = make(3)
            inputs = [first, make(1), first, make(4), make(2)]
            assert read_lengths(await compute(parts, inputs)) == [3, 1, 3, 4, 2]

    run(main())
    assert [num for num, _ in chunks] == [MEDIA_PER_CHUNK, MEDIA_PER_CHUNK, 5 - 2 * MEDIA_PER_CHUNK]
    assert all(thread.startswith("infinity-tokenizer") for _, thread in chunks)


@pytest.mark.parametrize("make", [str, lambda text: Pair(text[:3], text[3:])])
def test_few_characters_are_encoded_on_the_event_loop_and_many_on_a_thread(make: Any) -> None:
    threads: list[bool] = []

    def encode(inputs: Sequence[RequestInput], options: InputOptions) -> list[Encoded]:
        threads.append(threading.current_thread() is threading.main_thread())
        return fake.encode(inputs, options)

    async def main() -> None:
        async with started(fake_parts(encode=encode)) as parts:
            await compute(parts, [make("x" * INLINE_CHARS)])
            await compute(parts, [make("x" * (INLINE_CHARS // 2)), make("x" * (INLINE_CHARS // 2 + 1))])

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
def test_long_prompts_many_texts_and_models_that_block_are_encoded_on_a_thread(
    num_texts: int, prompt: str, is_allowed: bool, expected: bool
) -> None:
    threads: list[bool] = []

    def encode(inputs: Sequence[RequestInput], options: InputOptions) -> list[Encoded]:
        threads.append(threading.current_thread() is threading.main_thread())
        return fake.encode(inputs, options)

    parts = fake_parts(encode=encode, model_prepares_inline=is_allowed)

    async def main() -> None:
        async with started(parts):
            await compute(parts, [f"{number:02}" for number in range(num_texts)], prompt=prompt)

    run(main())
    assert threads == [expected]


def test_two_hundred_concurrent_requests_get_their_own_vectors() -> None:
    requests = [
        ["x" * (1 + (number * 7 + row) % 90) for row in range(1 + number % 9)] for number in range(200)
    ]

    async def main() -> None:
        async with started(fake_parts(max_batch_tokens=500, device_id=(0, 1))) as parts:
            answers = await asyncio.gather(*(embed(parts, texts) for texts in requests))
            assert answers == [[len(text) for text in texts] for texts in requests]
            assert_is_idle(parts)

    run(main())


def test_requests_of_different_options_share_batches() -> None:
    parts, backend = gated_parts("kind=embedder")

    async def main() -> None:
        async with started(parts):
            first = asyncio.create_task(embed(parts, ["first"]))
            await backend.wait_until_reached()
            others = [
                asyncio.create_task(compute(parts, ["ab"], prompt="query: ", task="query")),
                asyncio.create_task(compute(parts, ["ab"], outputs=("sparse",))),
            ]
            await run_ready_tasks()
            backend.open()
            dense, sparse = await asyncio.gather(*others)
            await first
            assert read_lengths(dense) == [9]
            assert sparse.by_name["sparse"][0].indices.tolist() == [97, 98]
            assert parts.host.pool.stats.num_batches == 2

    run(main())


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
def test_a_progress_bar_counts_the_texts_and_is_always_closed(
    last: str, is_answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bar = CountingBar()
    monkeypatch.setattr(runner, "open_progress_bar", lambda num_items, description: bar)

    async def main() -> None:
        async with started(fake_parts("fail_on=poison")) as parts:
            await asyncio.gather(embed(parts, ["a", "b", "a", last]), return_exceptions=True)

    run(main())
    assert bar.is_closed
    assert (bar.num_done == 3) is is_answered


@pytest.mark.parametrize("max_bytes", [0, 10**6])
def test_large_outputs_are_copied_off_the_event_loop(max_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeating the vectors of 2,048 equal texts held the event loop for half a second."""
    monkeypatch.setattr(fair_threads, "MAX_INLINE_BYTES", max_bytes)
    expand, threads = UniqueInputs.expand, []

    def note_thread(*args: Any) -> Any:
        threads.append(threading.current_thread())
        return expand(*args)

    async def main() -> None:
        monkeypatch.setattr(UniqueInputs, "expand", note_thread)
        async with started(fake_parts("kind=multivector")) as parts:
            computed = await compute(parts, ["ab", "ab", "c"], outputs=("multivector",))
            assert [len(rows) for rows in computed.by_name["multivector"]] == [2, 2, 1]

    run(main())
    [thread] = threads
    assert (thread is threading.main_thread()) is bool(max_bytes)
