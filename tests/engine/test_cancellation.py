"""Drop the work of requests that are cancelled or have failed."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Sequence

import pytest

from infinity_emb.backends import fake
from infinity_emb.concurrency import gather_or_cancel
from infinity_emb.engine.runner import INPUTS_PER_CHUNK
from infinity_emb.engine.slot import DRAIN_TIMEOUT_S
from infinity_emb.errors import (
    BackendFailed,
    BadInput,
    InputTooLong,
    Overloaded,
)
from infinity_emb.items import (
    Encoded,
    InputOptions,
    RequestInput,
)
from tests.support.event_loop import PATIENCE_S, run
from tests.support.fake_engines import (
    assert_is_idle,
    embed,
    fake_parts,
    gated_parts,
    run_ready_tasks,
    started,
)
from tests.support.gated_backend import GatedEncoder


def is_slow(given: RequestInput) -> bool:
    return str(given.value).startswith("slow")


def test_when_one_coroutine_fails_the_others_end_before_the_error_is_raised() -> None:
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


def test_remaining_chunks_of_a_failed_request_are_not_encoded() -> None:
    chunks: list[str] = []
    is_failed = threading.Event()

    def encode(inputs: Sequence[RequestInput], options: InputOptions) -> list[Encoded]:
        chunks.append(str(inputs[0].value)[:6])
        if len(chunks) == 2:
            assert is_failed.wait(PATIENCE_S)
        return fake.encode(inputs, options)

    async def main() -> None:
        async with started(fake_parts("fail_on=poison", encode=encode)) as parts:
            texts = ["poison", *(f"{number:050}" for number in range(5 * INPUTS_PER_CHUNK - 1))]
            request = asyncio.create_task(embed(parts, texts))
            while not parts.host.pool.stats.num_failed_items:
                await asyncio.sleep(0.001)
            parts.host.pool.queue.submit([])  # waits for the lock under which the request is failed
            is_failed.set()
            with pytest.raises(BackendFailed):
                await request

    run(main())
    assert len(chunks) <= 2


def test_a_cancelled_request_drops_its_texts_and_frees_its_room() -> None:
    parts, backend = gated_parts(max_queue_items=4, batch_size=1)

    async def main() -> None:
        async with started(parts):
            first = asyncio.create_task(embed(parts, ["first"]))
            await backend.wait_until_reached()
            cancelled = asyncio.create_task(embed(parts, ["x", "y", "z"]))
            await run_ready_tasks()
            with pytest.raises(Overloaded):
                await embed(parts, ["last"])
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            last = asyncio.create_task(embed(parts, ["last"]))
            await run_ready_tasks()
            backend.open()
            await asyncio.gather(first, last)
            assert_is_idle(parts)

    run(main())
    assert backend.seen == ["first", "last"]


def test_a_request_cancelled_during_tokenization_never_reaches_the_device() -> None:
    encode = GatedEncoder(fake.encode, is_slow)
    parts, backend = gated_parts(encode=encode)
    backend.open()

    async def main() -> None:
        async with started(parts):
            request = asyncio.create_task(embed(parts, ["slow" + "x" * 2000]))
            await encode.wait_until_reached()
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            encode.open()
            await embed(parts, ["other"])

    run(main())
    assert backend.seen == ["other"]


def test_when_one_chunk_is_rejected_the_others_never_reach_the_device() -> None:
    parts, backend = gated_parts(max_batch_tokens=10)
    backend.open()
    texts = ["x" * 9000, *(f"{number:040}" for number in range(3 * INPUTS_PER_CHUNK))]

    async def main() -> None:
        async with started(parts):
            with pytest.raises(InputTooLong):
                await embed(parts, texts, truncation="off")
            seen = len(backend.seen)
            await embed(parts, ["other"])
            assert backend.seen[seen:][-1] == "other"
            assert len(backend.seen) - seen <= 2

    run(main())


def test_a_request_cancelled_during_a_stop_drops_its_texts() -> None:
    parts, backend = gated_parts(batch_size=1)

    async def main() -> None:
        parts.slot.start()
        request = asyncio.create_task(embed(parts, ["a", "b", "c"]))
        await backend.wait_until_reached()
        stopping = asyncio.create_task(parts.slot.stop(DRAIN_TIMEOUT_S))
        await run_ready_tasks()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        backend.open()
        await stopping

    run(main())
    assert backend.seen == ["a"]


def test_an_event_loop_may_end_while_its_request_is_on_the_device() -> None:
    parts, backend = gated_parts()

    async def leave() -> None:
        parts.slot.start()
        asyncio.create_task(embed(parts, ["left"]))  # noqa: RUF006 - the loop ends before it does
        await backend.wait_until_reached()

    async def use() -> None:
        assert await embed(parts, ["aa"]) == [2]
        await parts.slot.stop(DRAIN_TIMEOUT_S)

    run(leave())
    backend.open()
    run(use())


def test_a_closed_event_loop_does_not_harm_the_worker_thread() -> None:
    parts, backend = gated_parts()
    loop = asyncio.new_event_loop()
    parts.slot.start()
    left = loop.create_task(embed(parts, ["left"]))
    loop.run_until_complete(backend.wait_until_reached())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    backend.open()

    assert run(embed(parts, ["aa"])) == [2]
    assert not left.done()
    del left
    gc.collect()
    run(parts.slot.stop(DRAIN_TIMEOUT_S))
