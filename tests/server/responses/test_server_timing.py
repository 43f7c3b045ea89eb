from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import pytest

from tests.support.tiny_server import build_debug_app, client_of, debug_args

pytestmark = pytest.mark.anyio

ASKING = {"Prefer": "server-timing"}
DELAY_S = 0.1
# The syntax of the specification, for names and durations alone.
ENTRY = re.compile(r"([a-z]+);dur=(\d+\.\d{3})")


def read_timing(response: httpx.Response) -> dict[str, float]:
    """Stage → milliseconds."""
    [header] = response.headers.get_list("server-timing")
    entries = [ENTRY.fullmatch(entry) for entry in header.split(", ")]
    assert all(entries), header
    return {entry[1]: float(entry[2]) for entry in entries if entry}


async def post(client: httpx.AsyncClient, path: str = "/embeddings", **body: Any) -> httpx.Response:
    return await client.post(path, json={"input": ["hello", "hi"], **body}, headers=ASKING)


async def test_a_request_that_asks_is_told_its_stages(client: httpx.AsyncClient) -> None:
    response = await post(client)
    assert response.status_code == 200
    stages = ["parse", "tokenize", "queue", "batch", "forward", "wake", "encode", "total"]
    assert list(read_timing(response)) == stages


async def test_the_stages_add_up_to_the_total() -> None:
    async with client_of(build_debug_app(debug_args(f"debug?delay_s={DELAY_S}"))) as client:
        timing = read_timing(await post(client))
    total, forward = timing.pop("total"), timing.pop("forward")
    assert 1000 * DELAY_S <= forward <= timing["batch"]
    assert 0.8 * total < sum(timing.values()) <= 1.001 * total


async def test_waiting_for_another_batch_is_time_in_the_queue() -> None:
    async with client_of(build_debug_app(debug_args(f"debug?delay_s={DELAY_S}", batch_size=1))) as client:
        timings = [
            read_timing(each) for each in await asyncio.gather(*(post(client, input="a") for _ in "123"))
        ]
    # Whichever came last waited for at least one whole batch.
    assert max(timing["queue"] for timing in timings) >= 1000 * DELAY_S
    assert all(timing["batch"] < timing["total"] for timing in timings)


@pytest.mark.parametrize(
    "prefer",
    ["respond-async, Server-Timing", "server-timing; q=1", " server-timing ,wait=10"],
)
async def test_the_preference_may_stand_among_others(client: httpx.AsyncClient, prefer: str) -> None:
    response = await client.get("/models", headers={"Prefer": prefer})
    assert list(read_timing(response)) == ["parse", "encode", "total"]


async def test_the_preference_is_found_in_the_second_header(client: httpx.AsyncClient) -> None:
    response = await client.get("/models", headers=[("Prefer", "wait=1"), ("Prefer", "server-timing")])
    assert "server-timing" in response.headers


@pytest.mark.parametrize("headers", [{}, {"Prefer": "timing"}, {"Prefer": ""}, {"Server-Timing": "1"}])
async def test_others_are_not_told(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    for response in (
        await client.post("/embeddings", json={"input": "hi"}, headers=headers),
        await client.post("/embeddings", json={}, headers=headers),
    ):
        assert "server-timing" not in response.headers


async def test_an_error_has_the_stages_until_then() -> None:
    async with client_of(build_debug_app(debug_args("debug?fail_on=poison"))) as client:
        failed = await post(client, input="poison")
        invalid = await post(client, input=7)
    assert (failed.status_code, invalid.status_code) == (500, 422)
    assert list(read_timing(failed)) == ["parse", "tokenize", "total"]
    assert list(read_timing(invalid)) == ["total"]


async def test_a_request_of_several_chunks_counts_no_time_twice(client: httpx.AsyncClient) -> None:
    timing = read_timing(await post(client, input=[f"text {number}" for number in range(300)]))
    total = timing.pop("total")
    assert all(0 <= each <= total for each in timing.values())


async def test_a_cached_request_waits_for_nothing_but_the_cache() -> None:
    async with client_of(build_debug_app(debug_args(vector_memory_cache_mb=1))) as client:
        assert "batch" in read_timing(await post(client))
        assert list(read_timing(await post(client))) == ["parse", "cache", "encode", "total"]


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("/rerank", "reranker", {"query": "q", "documents": ["a", "b"]}),
        ("/classify", "classifier", {"input": ["a"]}),
        ("/embed", "embedder", {"inputs": "a"}),
        ("/v2/rerank", "reranker", {"query": "q", "documents": ["a"], "model": "debug"}),
        ("/api/embed", "embedder", {"input": "a", "model": "debug"}),
    ],
)
async def test_every_task_and_dialect_is_timed(path: str, kind: str, body: dict[str, Any]) -> None:
    async with client_of(build_debug_app(debug_args(f"debug?kind={kind}"))) as client:
        response = await client.post(path, json=body, headers=ASKING)
    assert response.status_code == 200
    assert {"parse", "tokenize", "queue", "batch", "forward", "encode"} < read_timing(response).keys()


async def test_pages_of_other_origins_can_read_it() -> None:
    async with client_of(build_debug_app(permissive_cors=True)) as client:
        response = await client.get("/models", headers={**ASKING, "Origin": "http://elsewhere"})
    assert "server-timing" in response.headers["access-control-expose-headers"]
