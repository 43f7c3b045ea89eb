"""What happens to the work of a client that hangs up; the ASGI messages are spelt out."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from infinity_emb.server.schemas.embeddings import IMAGE_EXAMPLES
from infinity_emb.server.server_app import ServerApp
from tests.server.test_metrics import read_metrics
from tests.support.tiny_server import build_debug_app, client_of, debug_args, embed

pytestmark = pytest.mark.anyio

IMAGE = IMAGE_EXAMPLES["image"]["value"]["input"][0]
TEXTS = ["a" * length for length in range(1, 11)]
BODY = b'{"input": ["aa", "bb", "cc"]}'


async def post_and_hang_up(
    app: ServerApp, *, after_s: float, body: bytes = BODY, path: str = "/embeddings"
) -> list[Any]:
    """The messages that the app sent to a client that left."""
    sent: list[Any] = []
    received = [{"type": "http.request", "body": body[:9], "more_body": True}]
    if len(body) > 9:
        received.append({"type": "http.request", "body": body[9:], "more_body": False})

    async def receive() -> dict[str, Any]:
        if received:
            return received.pop(0)
        await asyncio.sleep(after_s)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    await app(scope, receive, send)
    return sent


async def test_a_client_that_hangs_up_takes_its_items_with_it() -> None:
    app = build_debug_app(debug_args("debug?delay_s=0.2", batch_size=1))
    async with client_of(app) as client:
        assert await post_and_hang_up(app, after_s=0.05) == []
        assert (await client.get("/models/debug")).json()["stats"]["results_pending"] == 0
        assert (await embed(client)).status_code == 200
        metrics = await read_metrics(client)
    assert metrics["infinity_items_total", "debug"] == 2  # the one under way, and the request after it
    assert metrics["http_requests_total", "/embeddings", "POST", "4xx"] == 1
    assert metrics["infinity_request_errors_total", "disconnected", "debug"] == 1


@pytest.mark.parametrize(
    ("kind", "path", "body"),
    [
        ("embedder", "/v1/embeddings", {"input": TEXTS, "outputs": ["dense", "sparse"]}),
        ("embedder", "/embed_sparse", {"inputs": TEXTS}),
        ("embedder", "/embeddings", {"input": [IMAGE] * 10, "modality": "image"}),
        ("embedder", "/embeddings_image", {"input": [IMAGE] * 10}),
        ("reranker", "/rerank", {"query": "q", "documents": TEXTS}),
        ("classifier", "/classify", {"input": TEXTS}),
    ],
)
async def test_every_task_is_cancelled(kind: str, path: str, body: dict[str, Any]) -> None:
    app = build_debug_app(debug_args(f"debug?kind={kind}&delay_s=0.2", batch_size=1))
    async with client_of(app) as client:
        assert await post_and_hang_up(app, after_s=0.1, body=json.dumps(body).encode(), path=path) == []
        assert (await client.get("/models/debug")).json()["stats"]["results_pending"] == 0
    assert app.engine_array[0].status().worker.num_items < 10


async def test_a_client_that_hangs_up_within_its_body_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    app = build_debug_app()
    async with client_of(app):
        assert await post_and_hang_up(app, after_s=0, body=BODY[:9]) == []
    assert caplog.records == []


async def test_a_client_that_stays_gets_its_slow_answer() -> None:
    app = build_debug_app(debug_args("debug?delay_s=0.2"))
    async with client_of(app):
        start, body = await post_and_hang_up(app, after_s=10)
    assert start["status"] == 200
    assert b'"index":2' in body["body"]


async def test_a_server_that_cancels_a_request_is_obeyed() -> None:
    app = build_debug_app(debug_args("debug?delay_s=0.2"))
    async with client_of(app):
        task = asyncio.create_task(post_and_hang_up(app, after_s=10))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
