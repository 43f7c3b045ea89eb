from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest

from infinity_emb.errors import QUERY_POSITION, BackendFailed, DeviceFailed, ServingError, StartupError
from infinity_emb.server.responses.errors import RETRY_HEADERS, TABLE, find_error_kind, retry_headers
from tests.support.tiny_server import build_debug_app, client_of, debug_args, embed


def retry_headers_of(response: httpx.Response) -> tuple[str | None, ...]:
    return tuple(response.headers.get(name) for name in RETRY_HEADERS)


def _subclasses(error: type[Exception]) -> list[type[Exception]]:
    return [error, *(deeper for each in error.__subclasses__() for deeper in _subclasses(each))]


def test_every_error_class_has_a_status() -> None:
    for error in _subclasses(ServingError):
        if error not in (StartupError, DeviceFailed):  # of loading a model; clients get LoadFailed
            assert error in TABLE


def test_a_subclass_has_the_status_of_its_nearest_base() -> None:
    for error in list(TABLE):
        assert find_error_kind(type("Special", (error,), {})) == TABLE[error]


NO_INPUT = BackendFailed("the device is gone")
AN_INPUT = BackendFailed("gives NaN", position=3)
A_QUERY = BackendFailed("gives NaN", position=QUERY_POSITION)


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        *((status, None, "false") for status in (400, 401, 404, 405, 413, 415, 422, 424)),
        *((status, None, None) for status in (408, 409, 500, 502)),
        *((status, None, "true") for status in (429, 503)),
        *((500, error, word) for error, word in ((NO_INPUT, None), (AN_INPUT, "false"), (A_QUERY, "false"))),
        (424, AN_INPUT, "false"),
    ],
)
def test_clients_are_told_whether_another_try_is_worth_it(
    status: int, error: Exception | None, expected: str | None
) -> None:
    assert retry_headers(status, error).get("x-should-retry") == expected


@pytest.mark.anyio
async def test_the_message_stands_beside_the_error_too(client: httpx.AsyncClient) -> None:
    """pymilvus's client of Text Embeddings Inference fails with a KeyError without it."""
    for response in (await embed(client, dimensions=5000), await client.get("/x")):
        assert response.json()["message"] == response.json()["error"]["message"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/embeddings", {"input": []}),
        ("POST", "/embeddings", {"input": "a", "dimensions": 5000}),
        ("POST", "/embeddings", {"input": "a", "encoding_format": "hex"}),
        ("GET", "/x", None),
        ("GET", "/models/x", None),
    ],
)
async def test_no_sentence_stands_in_a_body_three_times(
    client: httpx.AsyncClient, method: str, path: str, body: Any
) -> None:
    response = await client.request(method, path, json=body)
    sentence = response.json()["error"]["message"].partition(": ")[2] or response.json()["error"]["message"]
    assert 1 <= response.text.count(json.dumps(sentence, ensure_ascii=False)[1:-1]) <= 2


@pytest.mark.anyio
async def test_an_unknown_path_keeps_its_detail(client: httpx.AsyncClient) -> None:
    response = await client.post("/one-that-is-nowhere", json={})
    assert response.status_code == 404
    assert response.json() == {
        "error": {
            "message": "Not Found: POST /one-that-is-nowhere; /docs lists all paths",
            "type": "invalid_request_error",
            "param": None,
            "code": 404,
        },
        "message": "Not Found: POST /one-that-is-nowhere; /docs lists all paths",
        "detail": "Not Found",
    }


@pytest.mark.anyio
async def test_a_wrong_method_is_told_the_right_ones(client: httpx.AsyncClient) -> None:
    response = await client.get("/embeddings")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert response.json()["detail"] == "Method Not Allowed"
    assert response.json()["error"]["code"] == 405


@pytest.mark.anyio
async def test_a_full_queue_is_a_429_with_retry_after() -> None:
    app = build_debug_app(debug_args("debug?delay_s=0.2", max_queue_items=2))
    async with client_of(app) as client:
        accepted = asyncio.create_task(embed(client, ["a", "b"]))
        await asyncio.sleep(0.05)
        refused = await embed(client, "c")
        assert (await accepted).status_code == 200
        assert (await embed(client, "c")).status_code == 200
    assert refused.status_code == 429
    assert retry_headers_of(refused) == ("1", "1000", "true")
    error = refused.json()["error"]
    assert error["type"] == "rate_limit_error"
    assert error["message"].startswith("model debug is currently overloaded")


@pytest.mark.anyio
async def test_a_request_larger_than_the_queue_is_not_worth_a_retry() -> None:
    async with client_of(build_debug_app(debug_args(max_queue_items=2))) as client:
        response = await embed(client, ["a", "b", "c"])
    assert response.status_code == 400
    assert retry_headers_of(response) == (None, None, "false")


@pytest.mark.anyio
async def test_a_failing_text_fails_only_its_request(caplog: pytest.LogCaptureFixture) -> None:
    app = build_debug_app(debug_args("debug?fail_on=poison&delay_s=0.02"))
    texts = [["poison"], *([f"text {number}"] for number in range(20))]
    async with client_of(app) as client:
        responses = await asyncio.gather(*(embed(client, each) for each in texts))
    assert [each.status_code for each in responses] == [500] + [200] * 20
    error = responses[0].json()["error"]
    assert (error["type"], error["code"]) == ("server_error", 500)
    assert retry_headers_of(responses[0]) == (None, None, "false")
    assert responses[0].headers["x-request-id"] in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize("fault", ["wrong_count_on", "nan_on"])
async def test_a_backend_that_answers_wrongly_is_a_500(fault: str) -> None:
    async with client_of(build_debug_app(debug_args(f"debug?{fault}=bad"))) as client:
        assert (await embed(client, "bad")).status_code == 500
        assert (await embed(client, "good")).status_code == 200


@pytest.mark.anyio
@pytest.mark.usefixtures("dies_for_good")
async def test_a_dead_worker_is_a_503_with_retry_after() -> None:
    async with client_of(build_debug_app(debug_args("debug?die_on=end"))) as client:
        for text in ("end", "hello"):
            response = await embed(client, text)
            assert response.status_code == 503
            assert retry_headers_of(response) == ("1", "1000", "true")
            assert response.json()["error"]["type"] == "server_error"


@pytest.mark.anyio
async def test_an_unexpected_error_goes_to_the_log_and_its_id_to_the_client(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise KeyError("secret")

    app = build_debug_app()
    async with client_of(app) as client:
        monkeypatch.setattr(app.engine_array[0].embedder, "encode", fail)
        with caplog.at_level(logging.ERROR, logger="infinity_emb"):
            response = await client.post("/embeddings", json={"input": "a"}, headers={"x-request-id": "r-17"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "r-17"
    assert "secret" not in response.text
    assert "r-17" in response.json()["error"]["message"]
    [record] = caplog.records
    assert "r-17" in record.getMessage()
    assert record.exc_info is not None


@pytest.mark.anyio
async def test_before_the_start_everything_is_a_503() -> None:
    transport = httpx.ASGITransport(build_debug_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        responses = [await embed(client), *[await client.get(f"/{path}") for path in ("models", "health")]]
    assert [each.status_code for each in responses] == [503] * 3
