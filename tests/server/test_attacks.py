"""One client attacks, another one goes on: short forms of benchmarks/attack.py, without measuring time."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from infinity_emb.backends import fake
from infinity_emb.scheduling.fair_threads import MAX_SHORT_CHARS
from infinity_emb.server.requests import json_body
from infinity_emb.server.server_app import ServerApp
from tests.preprocessing.media.test_image_structure import GIF_BLOCKS, add_empty_scans, gif, jpeg
from tests.support.gated_backend import GatedEncoder
from tests.support.tiny_server import build_debug_app, client_of, debug_args

pytestmark = pytest.mark.anyio

HOG, OTHER = "the-key-of-the-hog", "the-key-of-the-other"


def build_app(model: str = "debug?kind=embedder", **options: Any) -> ServerApp:
    server_options = {"max_total_body_bytes": options.pop("max_total_body_bytes", 2**30)}
    return build_debug_app(debug_args(model, **options), api_key=(HOG, OTHER), **server_options)


async def post(
    client: httpx.AsyncClient, key: str, path: str = "/embeddings", **fields: Any
) -> httpx.Response:
    return await client.post(path, json=fields, headers={"authorization": f"Bearer {key}"})


async def flood(client: httpx.AsyncClient, num_requests: int, **fields: Any) -> list[asyncio.Task[Any]]:
    """Start requests of the hog and let them arrive."""
    tasks = [asyncio.create_task(post(client, HOG, **fields)) for _ in range(num_requests)]
    await asyncio.sleep(0)
    return tasks


async def count_statuses(tasks: list[asyncio.Task[httpx.Response]]) -> Counter[int]:
    return Counter(response.status_code for response in await asyncio.gather(*tasks))


@pytest.mark.parametrize("num_inputs", [1, 5, 70])
async def test_a_client_that_fills_the_queue_closes_it_to_nobody_else(num_inputs: int) -> None:
    """The other client got 429 for 182 of 187 requests."""
    app = build_app("debug?delay_s=0.01", max_queue_items=140, batch_size=1)
    async with client_of(app) as client:
        tasks = await flood(client, 3 * 140 // num_inputs, input=[f"{i}" for i in range(num_inputs)])
        admission = app.engine_array[0].gate.admission
        while not admission.num_refused:
            await asyncio.sleep(0.001)
        others = [await post(client, OTHER, input="query") for _ in range(5)]
        assert [response.status_code for response in others] == [200] * 5
        statuses = await count_statuses(tasks)
        assert set(statuses) == {200, 429}


async def test_interactive_requests_are_not_refused_because_of_bulk_work_of_the_same_client() -> None:
    app = build_app("debug?delay_s=0.01", max_queue_items=140, batch_size=1)
    async with client_of(app) as client:
        tasks = await flood(client, 6, input=[f"{i}" for i in range(70)])
        while not app.engine_array[0].gate.admission.num_refused:
            await asyncio.sleep(0.001)
        assert (await post(client, HOG, input="query")).status_code == 200
        assert (await post(client, HOG, input="query", priority="bulk")).status_code == 429
        await count_statuses(tasks)


async def test_long_texts_do_not_hold_up_a_text_of_two_kilobytes(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = GatedEncoder(fake.encode, lambda item: len(item.value) > MAX_SHORT_CHARS)
    monkeypatch.setattr(fake, "encode", encode)
    async with client_of(build_app()) as client:
        tasks = await flood(client, 10, input=["x" * 2 * MAX_SHORT_CHARS, "y" * 2 * MAX_SHORT_CHARS])
        await encode.wait_until_reached()
        assert (await post(client, OTHER, input="x" * 2000)).status_code == 200
        encode.open()
        assert await count_statuses(tasks) == {200: 10}


@pytest.mark.parametrize("text", ["a" * 30_000, "a" * 20_000 + "\U0001f600", "\u4e2d" * 10_000])
async def test_what_waits_has_one_limit_in_bytes(text: str) -> None:
    app = build_app("debug?delay_s=0.05", max_total_body_bytes=10**6)
    memory, most = app.state.context.memory, 0
    async with client_of(app) as client:
        tasks = await flood(client, 60, input=text)
        while not all(task.done() for task in tasks):
            most = max(most, memory.num_held_bytes)
            await asyncio.sleep(0.001)
        assert set(await count_statuses(tasks)) == {200, 503}
        assert 5 * 10**5 < most <= 10**6
        assert memory.num_held_bytes == 0
        assert (await post(client, OTHER, input="query")).status_code == 200


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (add_empty_scans(jpeg(1000, 1000, progressive=True), 1030), "scans"),
        (gif(GIF_BLOCKS["a comment of many parts"]), "segments"),
    ],
)
async def test_images_that_take_long_are_refused_and_those_of_others_decoded(
    image: bytes, words: str
) -> None:
    app = build_app()
    fine, bomb = (base64.b64encode(data).decode() for data in (jpeg(), image))
    async with client_of(app) as client:
        bombs = {"modality": "image", "input": [f"data:image/png;base64,{bomb}"] * 2}
        tasks = await flood(client, 4, **bombs)
        other = await post(client, OTHER, modality="image", input=[f"data:image/jpeg;base64,{fine}"])
        assert other.status_code == 200
        for response in await asyncio.gather(*tasks):
            assert response.status_code == 400
            assert words in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "content",
    [
        b'{"input": ["' + b"a" * 2**20 + b'"]}',
        b'{"input": [' + b",".join([b"[1]"] * 40_000) + b"]}",
        b'{"input": [' + b",".join([b'{"text": "a"}'] * 20_000) + b"]}",
        b'{"input": ["' + b',""' * 10**6 + b'"]}',
    ],
)
async def test_large_bodies_are_parsed_and_validated_off_the_event_loop(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, bool] = {}

    def watch(call: Callable[..., Any]) -> Callable[..., Any]:
        def note_thread(*args: Any) -> Any:
            threads[call.__name__] = threading.current_thread() is threading.main_thread()
            return call(*args)

        return note_thread

    for call in (json_body.parse_json, json_body.fit_schema):
        monkeypatch.setattr(json_body, call.__name__, watch(call))
    async with client_of(build_app()) as client:
        assert (await post(client, HOG, input="small")).status_code == 200
        assert threads == {"fit_schema": True}  # what is so small is not counted before it is parsed
        threads.clear()
        headers = {"authorization": f"Bearer {HOG}", "content-type": "application/json"}
        await client.post("/embeddings", content=content, headers=headers)
        assert threads["parse_json"] is False
        assert threads.get("fit_schema") is not True


async def test_small_requests_that_ask_for_much_work_are_refused_by_every_route() -> None:
    """115 kB made a server tokenize for three minutes."""
    numbers = [f"{number}" for number in range(2000)]
    long = "a b " * 25_000
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("debug?kind=embedder", "/embeddings", {"input": numbers, "prompt": long}),
        ("debug?kind=reranker", "/rerank", {"query": long, "documents": numbers}),
        ("debug?kind=reranker", "/rerank", {"query": long, "texts": numbers}),
        ("debug?kind=reranker", "/score", {"text_1": long, "text_2": numbers}),
        ("debug?kind=reranker", "/v2/rerank", {"query": long, "documents": numbers, "model": "debug"}),
    ]
    for model, path, fields in requests:
        async with client_of(build_app(model)) as client:
            response = await post(client, HOG, path, **fields)
            assert response.status_code in (400, 422), (path, response.text)
            assert "--max-request-chars" in response.text
