"""Refusals of a full queue that are sent early are those that would be sent later."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from infinity_emb.server import early_refusals
from infinity_emb.server.early_refusals import EarlyRefusals, Refusal
from tests.support.tiny_server import build_debug_app, client_of, debug_args, embed

pytestmark = pytest.mark.anyio
# Any header of this name makes a request take the usual steps.
USUAL = {"prefer": "nothing"}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/embeddings", {"input": "c"}),
    ("/v1/embeddings", {"model": "debug", "input": ["c", "d"], "encoding_format": "base64"}),
    ("/embed", {"inputs": "c"}),
    ("/v2/embed", {"texts": ["c"], "input_type": "search_query", "model": "debug"}),
    ("/pooling", {"input": "c"}),
    ("/tokenize", {"prompt": "c"}),
]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Refusal | None]:
    """What became of the requests that were looked at early."""
    results: list[Refusal | None] = []
    find = EarlyRefusals.find

    def note(*arguments: Any) -> Refusal | None:
        results.append(find(*arguments))
        return results[-1]

    monkeypatch.setattr(EarlyRefusals, "find", note)
    return results


@asynccontextmanager
async def full_server(**options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Run a server whose queue is full and which has refused a request, until the end of the block."""
    app = build_debug_app(debug_args("debug?delay_s=1", max_queue_items=2), **options)
    async with client_of(app) as client:
        accepted = asyncio.create_task(embed(client, ["a", "b"]))
        await asyncio.sleep(0.05)
        assert (await embed(client, "c")).status_code == 429
        yield client
        assert (await accepted).status_code == 200


def without_id(response: httpx.Response) -> tuple[int, Mapping[str, str], bytes]:
    headers = {name: value for name, value in response.headers.items() if name != "x-request-id"}
    return response.status_code, headers, response.content


@pytest.mark.parametrize(("path", "body"), REQUESTS, ids=[path for path, _ in REQUESTS])
async def test_an_early_refusal_is_the_usual_one(
    path: str, body: dict[str, Any], found: list[Refusal | None]
) -> None:
    async with full_server() as client:
        usual = await client.post(path, json=body, headers=USUAL)
        early = await client.post(path, json=body, headers={"x-request-id": "mine"})
    assert without_id(early) == without_id(usual)
    assert early.headers["x-request-id"] == "mine"
    assert (found[-1] is not None) == (early.status_code == 429)
    assert found[-2] is None


async def test_early_refusals_share_no_headers() -> None:
    origins = ["http://a.example", "http://b.example"]
    async with full_server(cors_origins=origins) as client:
        allowed = [
            (await client.post("/embeddings", json={"input": "c"}, headers=headers)).headers.get_list(
                "access-control-allow-origin"
            )
            for headers in ({"origin": origins[0]}, {"origin": origins[1]}, {})
        ]
    assert allowed == [["http://a.example"], ["http://b.example"], []]


async def test_early_refusals_are_counted(found: list[Refusal | None]) -> None:
    async with full_server() as client:
        before = await count_refusals(client)
        assert len(before) == 3
        assert (await embed(client, "c")).status_code == 429
        assert await count_refusals(client) == [number + 1 for number in before]
    assert found[-1] is not None


async def count_refusals(client: httpx.AsyncClient) -> list[float]:
    lines = (await client.get("/metrics")).text.splitlines()
    names = (
        'infinity_request_errors_total{kind="overloaded",model="debug"}',
        'http_requests_total{handler="/embeddings",method="POST",status="4xx"}',
        'infinity_requests_total{model="debug",route="/embeddings"}',
    )
    return [float(line.split()[-1]) for name in names for line in lines if line.startswith(name)]


async def test_unusual_bodies_take_the_usual_steps(
    found: list[Refusal | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_refusals, "MAX_BODY_BYTES", 100)
    json_type = {"content-type": "application/json"}
    gzip_type = {**json_type, "content-encoding": "gzip"}
    packed = gzip.compress(json.dumps({"input": "c"}).encode())
    async with full_server() as client:
        answers = [
            await client.post("/embeddings", content=b"{", headers=json_type),
            await client.post("/embeddings", content=b"[]", headers=json_type),
            await client.post("/embeddings", content=b"{}", headers={"content-type": "text/plain"}),
            await client.post("/embeddings", content=packed, headers=gzip_type),
            await embed(client, "c" * 100),
        ]
    assert [answer.status_code for answer in answers] == [422, 422, 415, 429, 429]
    assert found == [None] * len(answers)


async def test_a_queue_with_room_accepts_what_was_refused_before(found: list[Refusal | None]) -> None:
    async with full_server() as client:
        assert (await embed(client, "c")).status_code == 429
        await asyncio.sleep(1.2)
        assert (await embed(client, "c")).status_code == 200
        num_found = len(found)
        assert (await embed(client, "c")).status_code == 200
        assert len(found) == num_found, "looked at early without need"
