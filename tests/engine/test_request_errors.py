"""Report the input that caused an error, and fail no other request with it."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Sequence

import pytest

from infinity_emb.backends import fake
from infinity_emb.errors import (
    BackendFailed,
    BadInput,
    EngineNotReady,
    InputTooLong,
)
from infinity_emb.items import (
    Encoded,
    InputOptions,
    LateChunkingInput,
    Pair,
    RequestInput,
)
from tests.support.event_loop import PATIENCE_S, run
from tests.support.fake_engines import compute, embed, fake_parts, gated_parts, run_ready_tasks, started


@pytest.mark.parametrize("before", [["a"], ["a"] * 5, [f"text {number}" for number in range(200)]])
def test_a_rejected_text_is_named_by_its_position_in_the_request(before: list[str]) -> None:
    """Not by its place among the distinct texts, or in the chunk that was tokenized."""

    async def main() -> None:
        async with started(fake_parts()) as parts:
            texts = [*before, "x" * (fake.MAX_TOKENS + 1)]
            with pytest.raises(InputTooLong, match=rf"^input {len(before)} has 8193 tokens") as raised:
                await embed(parts, texts, truncation="off")
            assert raised.value.position == len(before)
            # The queue may still hold texts of it, which no device will see.
            assert (parts.gate.admission.num_accepted_items, parts.gate.num_requests) == (0, 0)

    run(main())


@pytest.mark.parametrize("fault", ["fail_on", "wrong_count_on", "nan_on"])
@pytest.mark.parametrize("before", [[], ["a"] * 5, [f"text {number}" for number in range(200)]])
def test_a_failed_text_is_named_by_its_position_in_the_request(fault: str, before: list[str]) -> None:
    async def main() -> None:
        async with started(fake_parts(f"{fault}=poison")) as parts:
            with pytest.raises(BackendFailed, match=rf"^input {len(before)} ") as raised:
                await embed(parts, [*before, "poison", "poison", "z"])
            assert raised.value.position == len(before)
            assert raised.value.__cause__ is not None

    run(main())


def test_a_failed_pair_is_named_by_its_position_in_the_request() -> None:
    pairs = [Pair("q", "a"), Pair("q", "a"), Pair("q", "poison"), Pair("q", "poison")]

    async def main() -> None:
        async with started(fake_parts("kind=reranker&nan_on=poison")) as parts:
            with pytest.raises(BackendFailed, match=r"^input 2 gives NaN"):
                await compute(parts, pairs)

    run(main())


@pytest.mark.parametrize(("position", "expected"), [(0, 1), (7, 8)])
def test_a_rejected_passage_is_named_by_its_own_position(position: int, expected: int) -> None:
    """It was looked up among the inputs, of which there is one."""

    def refuse(inputs: Sequence[RequestInput], options: InputOptions) -> list[Encoded]:
        raise BadInput("has no tokens", position=inputs[0].position + 1)

    async def main() -> None:
        inputs = [RequestInput(LateChunkingInput(("a", "", "b")), position)]
        async with (
            started(fake_parts("kind=embedder", encode=refuse)) as parts,
            parts.gate.request(3) as open_model,
        ):
            with pytest.raises(BadInput, match=f"^input {expected} has no tokens"):
                await open_model.runner.run(inputs, InputOptions(outputs=("chunks",)))

    run(main())


def test_vectors_that_are_finite_only_in_float32_are_returned() -> None:
    async def main() -> None:
        async with started(fake_parts("nan_in_half_on=hot")) as parts:
            assert await embed(parts, ["a", "hot", "hot!", "bb"]) == [1, 3, 4, 2]

    run(main())


def test_a_failing_text_fails_only_its_request() -> None:
    async def main() -> None:
        async with started(fake_parts("fail_on=poison")) as parts:
            requests = [embed(parts, [f"text {number}"]) for number in range(9)]
            answers = await asyncio.gather(
                *requests, embed(parts, ["fine", "poison"]), return_exceptions=True
            )
            assert isinstance(answers.pop(), BackendFailed)
            assert answers == [[6]] * 9
            assert parts.slot.is_running

    run(main())


@pytest.mark.parametrize("fault", ["fail_on", "wrong_count_on", "nan_on"])
def test_a_failed_request_frees_its_room_in_the_queue(fault: str) -> None:
    async def main() -> None:
        async with started(fake_parts(f"{fault}=poison", max_queue_items=2)) as parts:
            for _ in range(3):
                with pytest.raises(BackendFailed):
                    await embed(parts, ["poison", "fine"])
            assert await embed(parts, ["a", "bb"]) == [1, 2]

    run(main())


@pytest.mark.usefixtures("dies_for_good")
def test_after_a_final_crash_waiting_requests_fail_and_new_ones_are_refused() -> None:
    async def main() -> None:
        async with started(fake_parts("die_on=poison")) as parts:
            with pytest.raises(EngineNotReady, match="worker thread crashed"):
                await embed(parts, ["poison"])
            assert parts.slot.is_dead
            assert not parts.slot.is_running
            with pytest.raises(EngineNotReady):
                await embed(parts, ["fine"])

    run(main())


@pytest.mark.usefixtures("dies_for_good")
def test_an_error_that_ends_many_requests_has_a_short_traceback_in_each() -> None:
    """All of them raised one exception object, whose traceback grew with every request."""
    parts, backend = gated_parts("die_on=poison")

    async def main() -> None:
        async with started(parts):
            first = asyncio.create_task(embed(parts, ["poison"]))
            await backend.wait_until_reached()
            others = [asyncio.create_task(embed(parts, [f"text {number}"])) for number in range(50)]
            await run_ready_tasks()
            backend.open()
            errors = await asyncio.gather(first, *others, return_exceptions=True)
            assert all(isinstance(error, EngineNotReady) for error in errors)
            depths = [len(traceback.extract_tb(error.__traceback__)) for error in errors]  # type: ignore[union-attr]
            assert max(depths) <= 5

    run(main())


def test_a_crashed_worker_thread_restarts_and_only_the_text_to_blame_fails() -> None:
    async def main() -> None:
        async with started(fake_parts("die_on=poison")) as parts:
            requests = [embed(parts, [f"text {number}"]) for number in range(9)]
            answers = await asyncio.gather(*requests, embed(parts, ["poison"]), return_exceptions=True)
            assert isinstance(answers.pop(), BackendFailed)
            assert answers == [[6]] * 9
            assert parts.slot.is_running
            assert not parts.slot.is_dead
            assert parts.host.pool.stats.num_restarts >= 1
            assert await embed(parts, ["abc"]) == [3]
            assert parts.slot.is_ready

    run(main())


def test_a_hung_device_is_given_up_and_reported() -> None:
    parts, backend = gated_parts(batch_timeout_s=1)
    told = threading.Event()
    parts.host.on_death = told.set

    async def main() -> None:
        async with started(parts):
            with pytest.raises(EngineNotReady, match="took over 1 s"):
                await embed(parts, ["abc"])
            assert await asyncio.to_thread(told.wait, PATIENCE_S)
            assert parts.slot.is_dead
        backend.open()

    run(main())
