"""Known traffic to several models, and every counter of it to the unit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from infinity_emb.server.endpoints import API_ENDPOINTS
from infinity_emb.server.responses.errors import ERROR_KINDS, MODELLESS_ERROR_KINDS
from tests.server.test_metrics import Samples, read_metrics
from tests.support.tiny_server import build_debug_app, client_of, debug_args

pytestmark = pytest.mark.anyio

KEY = {"Authorization": "Bearer secret-key"}
MODELS = ("first", "second", "cached", "slow")
JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def client(anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server of four models, with a key."""
    app = build_debug_app(
        debug_args("first?kind=embedder&fail_on=poison"),
        debug_args("second?kind=reranker"),
        debug_args("cached", vector_memory_cache_mb=1),
        debug_args("slow?delay_s=0.2", max_queue_items=64, batch_size=1),
        api_key=("secret-key",),
        max_body_bytes=20_000,
        max_client_batch_size=8,
    )
    async with client_of(app, headers=KEY) as client:
        yield client


async def embed(client: httpx.AsyncClient, model: str, texts: Any, status: int = 200, **members: Any) -> None:
    response = await client.post("/embeddings", json={"model": model, "input": texts, **members})
    assert response.status_code == status, response.text


def counted(metrics: Samples, name: str) -> dict[tuple[str, ...], float]:
    """Label values → value, of the series of one metric that are not 0."""
    return {key[1:]: value for key, value in metrics.items() if key[0] == name and value}


async def test_requests_items_and_tokens_of_each_model_are_counted(client: httpx.AsyncClient) -> None:
    await embed(client, "first", ["hello", "hi"])
    await embed(client, "first", ["hello", "hi", "hi"])
    await client.post("/v1/embeddings", json={"model": "first:query", "input": "abc"})
    await client.post("/api/embed", json={"model": "first:latest", "input": "abcd"})
    for _ in range(3):
        await client.post("/rerank", json={"model": "second", "query": "q", "documents": ["a", "bc"]})
    metrics = await read_metrics(client)
    assert counted(metrics, "infinity_requests_total") == {
        ("first", "/embeddings"): 2,
        ("first", "/v1/embeddings"): 1,
        ("first", "/api/embed"): 1,
        ("second", "/rerank"): 3,
    }
    assert counted(metrics, "infinity_request_errors_total") == {}
    # Equal inputs of one request are computed once; `first:query` adds the prompt "query: ".
    assert counted(metrics, "infinity_items_total") == {("first",): 2 + 2 + 1 + 1, ("second",): 6}
    assert counted(metrics, "infinity_tokens_total") == {("first",): 7 + 7 + 10 + 4, ("second",): 3 * (3 + 4)}
    assert counted(metrics, "http_requests_total") == {
        ("/embeddings", "POST", "2xx"): 2,
        ("/v1/embeddings", "POST", "2xx"): 1,
        ("/api/embed", "POST", "2xx"): 1,
        ("/rerank", "POST", "2xx"): 3,
    }
    for model, num_requests, num_items in (("first", 4, 6), ("second", 3, 6)):
        assert metrics["infinity_encode_seconds_count", model] == num_requests
        assert metrics["infinity_queue_seconds_count", model] == num_items
        assert metrics["infinity_batch_items_sum", model] == num_items
        num_batches = metrics["infinity_batches_total", model]
        for stage in ("batch", "forward"):
            assert metrics[f"infinity_{stage}_seconds_count", model] == num_batches
        forward_s = metrics["infinity_forward_seconds_sum", model]
        assert 0 < forward_s <= metrics["infinity_batch_seconds_sum", model]


async def test_cached_and_computed_inputs_are_told_apart(client: httpx.AsyncClient) -> None:
    await embed(client, "cached", ["a", "b"])
    await embed(client, "cached", ["a", "b"])
    await embed(client, "cached", ["b", "c"])
    metrics = await read_metrics(client)
    assert metrics["infinity_cache_misses_total", "cached"] == 3
    assert metrics["infinity_cache_memory_hits_total", "cached"] == 3
    assert metrics["infinity_cache_disk_hits_total", "cached"] == 0
    assert counted(metrics, "infinity_items_total") == {("cached",): 3}
    assert counted(metrics, "infinity_requests_total") == {("cached", "/embeddings"): 3}


async def test_errors_of_each_kind_are_counted(client: httpx.AsyncClient) -> None:
    await embed(client, "first", "poison", 500)
    await embed(client, "first", "a" * 9000, 400, truncate=False)
    await embed(client, "first", [], 422)
    await embed(client, "first", "a", 422, dimensions="many")
    await embed(client, "first", list("abcdefghi"), 422)
    await embed(client, "first", "a", 400, dimensions=99)
    await embed(client, "second", "a", 400)
    await embed(client, "unknown", "a", 404)
    await embed(client, "slow", "a", 504, timeout=0.05)
    for method, path, options, status in (
        ("GET", "/no/such/path", {}, 404),
        ("PUT", "/embeddings", {}, 405),
        ("POST", "/embeddings", {"content": b"x" * 30_000, "headers": JSON}, 413),
        ("POST", "/embeddings", {"content": b"a=b", "headers": {"Content-Type": "text/plain"}}, 415),
        ("POST", "/embeddings", {"content": b"{", "headers": JSON}, 422),
        ("GET", "/models", {"headers": {"Authorization": "Bearer wrong"}}, 401),
    ):
        assert (await client.request(method, path, **options)).status_code == status
    metrics = await read_metrics(client)
    assert counted(metrics, "infinity_request_errors_total") == {
        ("backend_failed", "first"): 1,
        ("input_too_long", "first"): 1,
        ("invalid_request", "first"): 3,
        ("matryoshka_dim_error", "first"): 1,
        ("model_not_deployed_error", "second"): 1,
        ("unknown_model", ""): 1,
        ("deadline_exceeded", "slow"): 1,
        ("http_404", ""): 1,
        ("http_405", ""): 1,
        ("http_413", ""): 1,
        ("http_415", ""): 1,
        ("invalid_request", ""): 1,
        ("http_401", ""): 1,
    }
    assert metrics["infinity_failed_items_total", "first"] == 1
    assert metrics["infinity_requests_timed_out_total", "slow"] == 1


async def test_a_full_queue_is_counted_at_its_model(client: httpx.AsyncClient) -> None:
    texts = [f"{number}" for number in range(8)]
    body = {"model": "slow", "input": texts}
    waiting = [asyncio.create_task(client.post("/embeddings", json=body)) for _ in range(40)]
    num_refused = len(waiting) - 64 // len(texts)
    refused = [await task for _, task in zip(range(num_refused), asyncio.as_completed(waiting), strict=False)]
    assert {response.status_code for response in refused} == {429}
    metrics = await read_metrics(client)
    for task in waiting:
        task.cancel()
    assert metrics["infinity_request_errors_total", "overloaded", "slow"] == num_refused
    assert metrics["infinity_refused_requests_total", "slow"] == num_refused


async def test_everything_is_there_before_the_first_request(client: httpx.AsyncClient) -> None:
    metrics = await read_metrics(client)
    routes = [(endpoint.method, path) for endpoint in API_ENDPOINTS for path in endpoint.list_paths("")]
    for method, path in routes:
        for status in ("2xx", "4xx", "5xx"):
            assert metrics["http_requests_total", path, method, status] == 0
    for model in MODELS:
        for method, path in routes:
            if method == "POST":
                assert metrics["infinity_requests_total", model, path] == 0
        for kind in ERROR_KINDS:
            assert metrics["infinity_request_errors_total", kind, model] == 0
        assert metrics["infinity_device_memory_bytes", model] > 10 * 2**20
        limit = metrics["infinity_device_memory_limit_bytes", model]
        assert limit > metrics["infinity_device_memory_bytes", model]
    for kind in MODELLESS_ERROR_KINDS:
        assert metrics["infinity_request_errors_total", kind, ""] == 0


async def test_no_client_can_make_a_series(client: httpx.AsyncClient) -> None:
    async def make_up(number: int) -> None:
        name = f"made-up-{number}"
        headers = {"x-priority": name, "x-request-timeout": name, "x-request-id": name, "User-Agent": name}
        body = {"input": "a", "model": name, "user": name, "priority": name, name: name}
        for path in ("/embeddings", f"/{name}", f"/models/{name}", f"/openai/deployments/{name}/embeddings"):
            await client.post(path, json=body, headers=headers)
            await client.request(name.upper(), path, headers=headers)
            await client.get(path, headers={**headers, "Authorization": f"Bearer {name}"})
        body = {"input": "a", "model": "first", "user": name}
        await client.post("/embeddings", json=body, headers={"x-request-id": name})

    await read_metrics(client)
    await make_up(0)
    before = (await read_metrics(client)).keys()
    for number in range(1, 4):
        await make_up(number)
    metrics = await read_metrics(client)
    assert metrics.keys() == before
    assert not any("made-up" in label.lower() for key in metrics for label in key)
