from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from infinity_emb.scheduling.fair_queue import Flow
from infinity_emb.server.server_app import ServerApp
from tests.support.tiny_server import build_debug_app, client_of, debug_args, embed

pytestmark = pytest.mark.anyio

TEXT = {"input": "hello"}


@pytest.mark.parametrize("prefix", ["", "/api/embed", "/v1"])
async def test_every_documented_path_that_takes_json_is_reached(prefix: str) -> None:
    app = build_debug_app(url_prefix=prefix)
    async with client_of(app) as client:
        paths = [path for path, methods in app.openapi()["paths"].items() if "post" in methods]
        assert len(paths) > 15
        for path in paths:
            assert (await client.post(path, json=[])).status_code in (400, 422), path


async def test_what_is_no_post_of_a_known_path_is_fastapi_s(client: httpx.AsyncClient) -> None:
    wrong_method = await client.get("/embeddings")
    assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "POST")
    assert (await client.post("/embeddings/", json=TEXT, follow_redirects=True)).status_code == 200
    assert (await client.post("/nowhere", json=TEXT)).status_code == 404
    assert (await client.get("/openapi.json")).status_code == 200


async def test_a_prefix_that_a_proxy_leaves_on_is_taken_off() -> None:
    async with client_of(build_debug_app(proxy_root_path="/behind/proxy")) as client:
        for path in ("/embeddings", "/behind/proxy/embeddings", "/behind/proxy/v1/embeddings"):
            assert (await client.post(path, json=TEXT)).status_code == 200


async def test_each_path_has_its_own_row_in_the_metrics(client: httpx.AsyncClient) -> None:
    await embed(client)
    await client.post("/v1/embeddings", json=TEXT)
    metrics = (await client.get("/metrics")).text
    for path in ("/embeddings", "/v1/embeddings"):
        assert f'http_requests_total{{handler="{path}",method="POST",status="2xx"}} 1.0' in metrics


async def test_a_key_is_asked_for_first() -> None:
    async with client_of(build_debug_app(api_key=["secret"])) as client:
        assert (await embed(client)).status_code == 401


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'{"input": 1}', {"content-type": "application/json"}, 422),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b'{"input": "hello", "dimensions": 0}', {"content-type": "application/json"}, 400),
    ],
)
async def test_errors_are_answered_as_on_any_route(
    client: httpx.AsyncClient, body: bytes, headers: dict[str, str], status: int
) -> None:
    answer = await client.post("/embeddings", content=body, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == status


SMALL = debug_args(max_queue_items=2)


@asynccontextmanager
async def filled(app: ServerApp, client: httpx.AsyncClient) -> AsyncIterator[None]:
    """All the room of the first model is taken, and one request has been refused."""
    admission = app.engine_array[0].gate.admission
    flow = Flow("127.0.0.1")
    admission.admit(2, flow)
    assert (await embed(client, model="debug")).status_code == 429
    yield
    admission.release(2, flow)


@pytest.mark.parametrize(
    ("path", "body", "message_at"),
    [
        ("/embeddings", TEXT, ("error", "message")),
        ("/embeddings", {"input": "hello", "truncation": True}, ("detail",)),
        ("/rerank", {"query": "a", "documents": ["b"]}, ("error", "message")),
        ("/rerank", {"query": "a", "texts": ["b"]}, ("error",)),
        ("/embed", {"inputs": "hello"}, ("error",)),
        ("/v2/embed", {"texts": ["hello"], "model": "debug"}, ("message",)),
        ("/api/embed", {"input": "hello", "model": "debug"}, ("error",)),
        ("/score", {"text_1": "a", "text_2": "b"}, ("error", "message")),
    ],
)
async def test_a_full_model_refuses_in_the_shape_of_the_dialect(
    path: str, body: dict[str, Any], message_at: tuple[str, ...]
) -> None:
    app = build_debug_app(SMALL)
    async with client_of(app) as client, filled(app, client):
        refused = await client.post(path, json=body)
        assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "true")
        found: Any = refused.json()
        for name in message_at:
            found = found[name]
        assert "queue full (2 of 2 inputs)" in found


async def test_each_refusal_is_counted_once_and_room_that_comes_back_is_given() -> None:
    app = build_debug_app(SMALL)
    async with client_of(app) as client:
        async with filled(app, client):
            for num_refused in (2, 3, 4):
                # Not looked at: what is wrong with it is found out when there is room.
                assert (await client.post("/embeddings", json={"input": 1})).status_code == 429
                assert app.engine_array[0].status().num_refused_requests == num_refused
        assert (await client.post("/embeddings", json={"input": 1})).status_code == 422
        assert (await embed(client)).status_code == 200


async def test_what_needs_no_room_is_answered_by_a_full_model() -> None:
    app = build_debug_app(SMALL)
    async with client_of(app) as client, filled(app, client):
        assert (await client.post("/api/show", json={"model": "debug"})).status_code == 200


async def test_one_full_model_does_not_refuse_for_another() -> None:
    app = build_debug_app(SMALL, debug_args("free"))
    async with client_of(app) as client, filled(app, client):
        assert (await embed(client, model="free")).status_code == 200
        assert (await embed(client, model="debug")).status_code == 429
        assert (await embed(client, model="nobody")).status_code == 404
        assert (await client.post("/embeddings", json={"input": "hello", "model": 7})).status_code == 422


async def test_users_may_add_routes_of_fastapi() -> None:
    app = build_debug_app()

    @app.get("/mine/{name}")
    async def mine(name: str) -> dict[str, str]:
        return {"name": name}

    async with client_of(app) as client:
        assert (await client.get("/mine/a")).json() == {"name": "a"}
        assert "/mine/{name}" in (await client.get("/openapi.json")).json()["paths"]
