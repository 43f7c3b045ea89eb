"""What requests hold in memory together, from the first byte of a body until the response is sent."""

from __future__ import annotations

import asyncio
import json
import string
import sys
import threading
import tracemalloc
from contextlib import ExitStack
from typing import Any

import orjson
import pytest
from starlette.exceptions import HTTPException

from infinity_emb.backends.fake import EMBEDDING_DIMENSION, MAX_TOKENS
from infinity_emb.server.requests.memory import MemoryBudget, measure_fields
from infinity_emb.server.responses import sliced
from infinity_emb.server.responses.sending import MAX_BUFFERED_BYTES
from infinity_emb.server.responses.sliced import SlicedResponse
from tests.support.server_on_a_thread import wait_until
from tests.support.tiny_server import build_debug_app, client_of, debug_args, embed

JSON = {"content-type": "application/json"}


def test_what_a_request_holds_is_replaced_and_released() -> None:
    memory = MemoryBudget(1000)
    with memory.open("a") as first, memory.open("a") as second:
        first.hold(500)
        second.hold(300)
        with pytest.raises(HTTPException, match="more than 1000 bytes together") as caught:
            second.hold(400)
        assert caught.value.status_code == 503
        first.hold(100)
        second.hold(700)
        assert memory.num_held_bytes == 800
    assert memory.num_held_bytes == 0


def test_a_client_that_fills_the_memory_leaves_some_to_others() -> None:
    memory = MemoryBudget(8000)
    with ExitStack() as stack:
        for _ in range(666):
            stack.enter_context(memory.open("hog")).hold(10)
        one_more = stack.enter_context(memory.open("hog"))
        with pytest.raises(HTTPException, match="its share"):
            one_more.hold(10)
        for number in range(20):
            stack.enter_context(memory.open(f"client {number}")).hold(20)


def test_all_clients_together_hold_less_than_the_limit() -> None:
    """An eighth more was let in, and what was freed and not returned to the system came on top of it."""
    limit = 2**30
    memory = MemoryBudget(limit)
    with ExitStack() as stack:
        for client in range(100):
            held = stack.enter_context(memory.open(f"client {client}"))
            while held.take(2**20):
                pass
        assert limit * 0.9 < memory.num_held_bytes <= limit * 15 / 16


def test_freed_memory_is_returned_to_the_system_before_there_is_much_of_it() -> None:
    """Each thread kept what it had freed, at last as much as was in use."""
    returned: list[threading.Thread] = []
    memory = MemoryBudget(2**30, return_freed=lambda: returned.append(threading.current_thread()))
    with memory.open("a") as held:
        for _ in range(12):
            held.hold(2**24)
            held.hold(0)
    wait_until(lambda: len(returned) == 3)
    assert threading.main_thread() not in returned


TEXTS = {
    "ASCII": "a" * 100_000,
    "one character beyond the BMP": "a" * 100_000 + "\U0001f600",
    "Chinese": "\u4e2d" * 50_000,
    "Latin": "\xe9" * 50_000,
}


@pytest.mark.parametrize(
    "value",
    [
        *TEXTS.values(),
        ["a"] * 20_000,
        [f"text {number}" for number in range(20_000)],
        list(range(1000, 30_000)),
        [[]] * 20_000,
        [{"text": f"{number}"} for number in range(5_000)],
        [[[number] for number in range(1000)]] * 5,
        {f"name {number}": None for number in range(10_000)},
    ],
)
def test_the_measure_is_about_what_the_fields_take(value: Any) -> None:
    """Bytes of the body were counted: one character beyond the BMP made them four times as many."""
    content = json.dumps({"input": value}, ensure_ascii=False).encode()
    tracemalloc.start()
    try:
        fields = orjson.loads(content)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    measured = measure_fields(fields, len(content))
    assert taken * 0.7 <= measured <= 6 * taken + 100_000


@pytest.mark.parametrize("name", list(TEXTS))
def test_a_text_counts_with_the_utf_8_that_libraries_have_made_of_it(name: str) -> None:
    text = TEXTS[name]
    utf8 = 0 if text.isascii() else len(text.encode())
    measured = measure_fields({"input": [text]}, len(text))
    assert measured >= sys.getsizeof(text) + utf8


@pytest.mark.anyio
async def test_texts_count_until_their_response_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only reading counted: what waited for the device took gigabytes."""
    app = build_debug_app(max_total_body_bytes=118_000)
    async with client_of(app) as client:
        queue = app.engine_array[0].slot.host.pool.queue
        waiting: list[Any] = []
        monkeypatch.setattr(queue, "submit", lambda items, **_: waiting.append(items))
        first = asyncio.create_task(embed(client, "x" * 60_000))
        while not waiting:
            await asyncio.sleep(0.01)
        token_bytes = 4 * MAX_TOKENS
        assert 60_000 <= app.state.context.memory.num_held_bytes - token_bytes <= 70_000
        refused = await embed(client, "y" * 60_000)
        assert refused.status_code == 503
        assert "--max-total-body-bytes" in refused.json()["error"]["message"]
        monkeypatch.undo()
        queue.submit(waiting[0])
        assert (await first).status_code == 200
        assert app.state.context.memory.num_held_bytes == 0
        assert (await embed(client, "y" * 60_000)).status_code == 200


@pytest.mark.anyio
async def test_responses_that_nobody_has_read_count_and_have_the_same_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sliced, "VALUES_PER_SLICE", 2**16)  # the response is one piece
    app = build_debug_app(max_total_body_bytes=360_000)
    texts = [f"{number}" for number in range(1500)]
    content = json.dumps({"input": texts}).encode()
    may_read = asyncio.Event()
    sizes: list[int] = []

    async def call(is_read: bool) -> list[Any]:
        messages: list[Any] = []

        async def receive() -> Any:
            if messages:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Any) -> None:
            """Wait as a server does that has more to send than it buffers."""
            if not is_read and sum(len(each.get("body", b"")) for each in messages) > MAX_BUFFERED_BYTES:
                await may_read.wait()
            messages.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/embeddings",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
        }
        await app(scope, receive, send)
        sizes.append(sum(len(each.get("body", b"")) for each in messages))
        return messages

    async with client_of(app):
        assert (await call(True))[0]["status"] == 200
        assert 150_000 < sizes[0] < 250_000, sizes
        unread = asyncio.create_task(call(False))
        while app.state.context.memory.num_held_bytes != sizes[0]:
            await asyncio.sleep(0.01)
        assert (await call(True))[0]["status"] == 503
        assert not unread.done()
        may_read.set()
        messages = await unread
        assert [each.get("more_body") for each in messages] == [None, True, False]
        assert (await call(True))[0]["status"] == 200
        assert app.state.context.memory.num_held_bytes == 0


@pytest.mark.anyio
async def test_vectors_count_between_the_forward_pass_and_the_response(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They were in no budget, whatever the response took."""
    app = build_debug_app(debug_args("debug?kind=multivector", batch_size=1))
    memory, held = app.state.context.memory, []
    encode = SlicedResponse.encode

    async def note(*args: Any) -> None:
        held.append(memory.num_held_bytes)
        await encode(*args)
        held.append(memory.num_held_bytes)

    monkeypatch.setattr(SlicedResponse, "encode", note)
    async with client_of(app) as client:
        texts = [f"{number}" * 1000 for number in range(10)]
        response = await embed(client, texts)
        assert response.status_code == 200
    num_bytes = 10 * 1000 * (EMBEDDING_DIMENSION + 1) * 4  # with the token ids
    assert num_bytes <= held[0] <= num_bytes + 50_000
    assert held[1] == held[0] + len(response.content)
    assert memory.num_held_bytes == 0


@pytest.mark.anyio
@pytest.mark.parametrize("options", [{}, {"vector_memory_cache_mb": 100}])
@pytest.mark.parametrize("kind", ["multivector", "sparse", "embedder"])
async def test_vectors_that_do_not_fit_are_a_503_and_nothing_more_is_computed(
    kind: str, options: dict[str, Any]
) -> None:
    app = build_debug_app(
        debug_args(f"debug?kind={kind}", batch_size=1, **options), max_total_body_bytes=108_000
    )
    letters = string.ascii_letters + string.digits
    texts = [letters[number % 50 :] + f"{number}" for number in range(900)]
    async with client_of(app) as client:
        assert (await embed(client, texts[:2], **OUTPUTS[kind])).status_code == 200
        pool = app.engine_array[0].slot.host.pool
        num_before = pool.stats.num_items
        response = await embed(client, texts, **OUTPUTS[kind])
        assert response.status_code == 503
        assert "--max-total-body-bytes" in response.json()["error"]["message"]
        assert response.headers["retry-after"] == "1"
        assert pool.stats.num_items - num_before < 800
        assert app.state.context.memory.num_held_bytes == 0
        assert (await embed(client, "another", **OUTPUTS[kind])).status_code == 200


OUTPUTS: dict[str, dict[str, Any]] = {"multivector": {}, "sparse": {"outputs": ["sparse"]}, "embedder": {}}


@pytest.mark.anyio
@pytest.mark.parametrize("options", [{}, {"vector_memory_cache_mb": 100}])
async def test_a_text_that_occurs_often_is_counted_as_often(options: dict[str, Any]) -> None:
    """One of 8,192 tokens, sent 2,048 times in one request, was computed once and copied into gigabytes."""
    app = build_debug_app(debug_args("debug?kind=multivector", **options), max_total_body_bytes=2_000_000)
    async with client_of(app) as client:
        assert (await embed(client, ["a" * 1000] * 2)).status_code == 200
        assert (await embed(client, ["a" * 1000] * 200)).status_code == 503
        assert app.engine_array[0].slot.host.pool.stats.num_items <= 2
        assert app.state.context.memory.num_held_bytes == 0


def test_what_is_added_after_the_end_of_a_request_is_not_counted() -> None:
    memory = MemoryBudget(10)
    with memory.open("a") as held:
        assert held.take(3)
        assert held.take(4)
        assert not held.take(4)
        assert memory.num_held_bytes == 7
    assert held.take(5)
    assert memory.num_held_bytes == 0


@pytest.mark.anyio
async def test_what_fails_is_released() -> None:
    app = build_debug_app()
    async with client_of(app) as client:
        for content in (b"{", b'{"input": 1}', b'{"input": "a", "dimensions": 0}', b"[" * 2000):
            assert (await client.post("/embeddings", content=content, headers=JSON)).status_code >= 400
            assert app.state.context.memory.num_held_bytes == 0
