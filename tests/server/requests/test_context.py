from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from infinity_emb.scheduling.request_context import RequestContext, current_request
from tests.support.tiny_server import build_debug_app, client_of, debug_args

pytestmark = pytest.mark.anyio

NO_INTEGERS = ("urgent", "--1", "-", "", "+1", "1_0", "1.5", "0x1", "9" * 5000, "-" + "9" * 5000, "\xb2")
NO_NUMBERS = ("soon", "", "--1", "1_0", "0x1", "inf", "1e400", "9" * 5000, "1e", "e1", "1,5", "\xb2")


async def caller_seen(
    monkeypatch: pytest.MonkeyPatch,
    *,
    path: str = "/embeddings",
    body: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    **options: Any,
) -> RequestContext:
    """What the engine is told of who asks."""
    seen: list[RequestContext] = []
    app = build_debug_app(**options)
    async with client_of(app) as client:
        engine = app.engine_array[0]
        encode = engine.embedder.encode

        async def note(*args: Any, **kwargs: Any) -> Any:
            seen.append(current_request())
            return await encode(*args, **kwargs)

        monkeypatch.setattr(engine.embedder, "encode", note)
        response = await client.post(path, json={"input": "abc", **(body or {})}, headers=headers)
    assert response.status_code == 200, response.text
    [caller] = seen
    return caller


@pytest.mark.parametrize(
    ("body", "headers", "lane"),
    [
        ({}, {}, None),
        ({"priority": None}, {}, None),
        ({"priority": 0}, {}, None),
        ({"priority": "bulk"}, {}, "bulk"),
        ({"priority": "interactive"}, {}, "interactive"),
        ({"priority": 7}, {}, "bulk"),
        ({"priority": -1}, {}, "interactive"),
        ({}, {"x-priority": "bulk"}, "bulk"),
        ({}, {"x-priority": "7"}, "bulk"),
        ({}, {"x-priority": "-7"}, "interactive"),
        ({"priority": "interactive"}, {"x-priority": "bulk"}, "interactive"),
    ],
)
async def test_a_field_or_a_header_says_how_much_a_request_hurries(
    monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], headers: dict[str, str], lane: str | None
) -> None:
    assert (await caller_seen(monkeypatch, body=body, headers=headers)).lane == lane


async def test_every_dialect_has_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    caller = await caller_seen(
        monkeypatch, path="/api/embed", headers={"x-priority": "bulk", "x-request-timeout": "2.5"}
    )
    assert (caller.lane, caller.timeout_s) == ("bulk", 2.5)


async def test_a_field_or_a_header_says_how_long_the_client_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await caller_seen(monkeypatch, body={"timeout": 3})).timeout_s == 3
    assert (await caller_seen(monkeypatch, headers={"x-request-timeout": "4"})).timeout_s == 4
    assert (await caller_seen(monkeypatch, headers={"x-request-timeout": "1e300"})).timeout_s == 1e300
    assert (await caller_seen(monkeypatch, body={"timeout": 1e300})).timeout_s == 1e300
    assert (await caller_seen(monkeypatch)).timeout_s is None


async def test_with_keys_each_of_them_is_a_client_and_the_key_itself_goes_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    callers = [
        await caller_seen(
            monkeypatch, api_key=("first-key", "second-key"), headers={"Authorization": f"Bearer {key}"}
        )
        for key in ("first-key", "second-key", "first-key")
    ]
    first, second, again = (caller.client for caller in callers)
    assert first == again != second
    assert "key" not in first + second


async def test_without_keys_an_address_is_a_client_whatever_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = await caller_seen(monkeypatch, headers={"Authorization": "Bearer whatever"})
    other = await caller_seen(monkeypatch, headers={"Authorization": "Bearer another"})
    assert one.client == other.client == "127.0.0.1"


@pytest.mark.parametrize(
    ("body", "headers", "name"),
    [
        ({"priority": "urgent"}, {}, "priority"),
        ({"priority": 1.5}, {}, "priority"),
        ({"timeout": 0}, {}, "timeout"),
        ({"timeout": "soon"}, {}, "timeout"),
        ({"priority": 10**30}, {}, "priority"),
        ({}, {"x-request-timeout": "-1"}, "x-request-timeout"),
        ({}, {"x-request-timeout": "nan"}, "x-request-timeout"),
        *(({}, {"x-priority": text}, "x-priority") for text in NO_INTEGERS),
        *(({}, {"x-request-timeout": text}, "x-request-timeout") for text in NO_NUMBERS),
    ],
)
async def test_nonsense_is_a_422_that_names_it(
    body: dict[str, Any], headers: dict[str, str], name: str
) -> None:
    """`--1`, and more digits than Python parses, were a 500."""
    async with client_of(build_debug_app()) as client:
        raw = {key: value.encode("latin-1") for key, value in headers.items()}
        response = await client.post("/embeddings", json={"input": "abc", **body}, headers=raw)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == name


async def test_a_request_whose_time_is_over_is_a_504_and_the_next_one_is_answered() -> None:
    async with client_of(build_debug_app(debug_args("debug?delay_s=0.3"))) as client:
        late = await client.post("/embeddings", json={"input": "abc", "timeout": 0.05})
        in_time = await client.post("/embeddings", json={"input": "abc", "timeout": 30})
    assert (late.status_code, in_time.status_code) == (504, 200)
    assert "0.05 s" in late.json()["error"]["message"]


async def test_who_is_refused_is_told_when_there_is_room_again() -> None:
    args = debug_args("debug?delay_s=0.02", batch_size=1, max_queue_wait_s=1)
    async with client_of(build_debug_app(args)) as client:
        await client.post("/embeddings", json={"input": [f"first {n}" for n in range(20)]})
        work = asyncio.create_task(
            client.post("/embeddings", json={"input": [f"text {number}" for number in range(100)]})
        )
        refused: httpx.Response | None = None
        while refused is None and not work.done():
            response = await client.post("/embeddings", json={"input": ["a", "b"], "priority": "bulk"})
            refused = response if response.status_code == 429 else None
        assert (await work).status_code == 200
    assert refused is not None
    wait_s = int(refused.headers["retry-after"])
    assert 1 <= wait_s <= 3
    assert refused.headers["retry-after-ms"] == str(1000 * wait_s)
    assert "expected wait of" in refused.json()["error"]["message"]
