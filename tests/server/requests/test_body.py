from __future__ import annotations

import asyncio
import itertools
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from infinity_emb.scheduling import request_turns
from infinity_emb.scheduling.fair_threads import FairThreads
from infinity_emb.scheduling.request_turns import MIN_STARTS
from infinity_emb.server.requests.body import BodyReader
from infinity_emb.server.requests.memory import MemoryBudget
from tests.support.event_loop import run

END = object()
DISCONNECT = object()


def make_request(chunks: Sequence[object], headers: Sequence[tuple[bytes, bytes]] = ()) -> Request:
    """Make a request whose body arrives in these chunks."""
    unread = list(chunks)

    async def receive() -> dict[str, Any]:
        chunk = unread.pop(0)
        if chunk is DISCONNECT:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": b"" if chunk is END else chunk, "more_body": bool(unread)}

    return Request({"type": "http", "headers": list(headers)}, receive)


def read(memory: MemoryBudget, max_body_bytes: int, *args: Any) -> bytes:
    async def main() -> bytes:
        threads = FairThreads(1, "test")
        with memory.open("a") as held:
            reader = BodyReader(threads, max_body_bytes=max_body_bytes)
            return bytes(await reader.read(make_request(*args), held))

    return run(main())


@pytest.mark.parametrize("chunks", [[b"abcdef"], [b"abc", b"def"], [b"", b"ab", b"cd", b"", b"ef", b""]])
def test_chunks_are_joined(chunks: list[bytes]) -> None:
    assert read(MemoryBudget(100), 6, chunks) == b"abcdef"


@given(st.lists(st.integers(0, 3 * 2**14), max_size=12))
def test_pieces_of_any_size_are_joined_in_order(sizes: list[int]) -> None:
    chunks = [bytes([number]) * size for number, size in enumerate(sizes)] or [b""]
    assert read(MemoryBudget(2**20), 2**20, chunks) == b"".join(chunks)


def test_many_small_pieces_take_about_the_memory_of_their_bytes() -> None:
    """As an object each, they took some twenty times as much as was counted."""
    numbers = iter(range(2**16))

    async def receive() -> dict[str, Any]:
        number = next(numbers)
        return {
            "type": "http.request",
            "body": number.to_bytes(2, "big"),
            "more_body": number < 2**16 - 1,
        }

    async def main() -> tuple[int, int]:
        request = Request({"type": "http", "headers": []}, receive)
        with MemoryBudget(2**20).open("a") as held:
            reader = BodyReader(FairThreads(1, "test"), max_body_bytes=2**20)
            body = await reader.read(request, held)
        return len(body), tracemalloc.get_traced_memory()[1]

    tracemalloc.start()
    try:
        num_bytes, peak = run(main())
    finally:
        tracemalloc.stop()
    assert num_bytes == 2**17
    assert peak < 5 * num_bytes


def test_a_body_over_the_limit_is_a_413() -> None:
    memory = MemoryBudget(100)
    with pytest.raises(HTTPException, match="more than 5 bytes") as caught:
        read(memory, 5, [b"abc", b"def"])
    assert (caught.value.status_code, memory.num_held_bytes) == (413, 0)


def test_a_declared_length_over_the_limit_is_rejected_without_reading() -> None:
    with pytest.raises(HTTPException) as caught:
        read(MemoryBudget(100), 5, [], [(b"content-length", b"6")])
    assert caught.value.status_code == 413


def test_bodies_over_the_total_limit_are_a_503() -> None:
    memory = MemoryBudget(5)
    with pytest.raises(HTTPException) as caught:
        read(memory, 100, [b"abcdef"])
    assert (caught.value.status_code, memory.num_held_bytes) == (503, 0)


def test_a_large_body_counts_twice_while_its_pieces_are_joined() -> None:
    half = b"x" * 2**19
    assert read(MemoryBudget(2**23), 2**20, [half, half]) == 2 * half
    memory = MemoryBudget(2**21)
    with pytest.raises(HTTPException) as caught:
        read(memory, 2**20, [half, half])
    assert (caught.value.status_code, memory.num_held_bytes) == (503, 0)


def test_a_few_pieces_of_all_bodies_are_received_in_a_long_turn_of_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """49 bodies of 31 MB arrived at once, and each turn of the loop took a tenth of a second."""
    monkeypatch.setattr(request_turns, "LONG_TURN_S", 0.0)

    async def main() -> list[int]:
        threads, memory = FairThreads(1, "test"), MemoryBudget(10**6)
        reader = BodyReader(threads, max_body_bytes=1000)
        num_received, counts = 0, []

        async def read_one() -> None:
            nonlocal num_received
            request = make_request([b"a"] * 9)
            receive = request._receive

            async def count() -> Any:
                nonlocal num_received
                num_received += 1
                return await receive()

            request._receive = count
            with memory.open("a") as held:
                await reader.read(request, held)

        tasks = [asyncio.create_task(read_one()) for _ in range(30)]
        while not all(task.done() for task in tasks):
            counts.append(num_received)
            await asyncio.sleep(0)
        return [num_received, *(after - before for before, after in itertools.pairwise(counts[2:]))]

    total, *counts = run(main())
    assert total == 270
    assert max(counts) <= 2 * MIN_STARTS


def test_a_disconnect_during_the_body_raises_and_releases() -> None:
    memory = MemoryBudget(100)
    with pytest.raises(ClientDisconnect):
        read(memory, 100, [b"abc", DISCONNECT])
    assert memory.num_held_bytes == 0
