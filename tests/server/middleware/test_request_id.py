from __future__ import annotations

import httpx
import pytest

pytestmark = pytest.mark.anyio


async def test_the_clients_id_comes_back(client: httpx.AsyncClient) -> None:
    response = await client.get("/health", headers={"x-request-id": "trace-7.a:b/c"})
    assert response.headers.get_list("x-request-id") == ["trace-7.a:b/c"]


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'a"b', "a\tb", "a,b"])
async def test_an_id_that_could_break_a_log_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    response = await client.get("/health", headers={"x-request-id": given})
    [request_id] = response.headers.get_list("x-request-id")
    assert request_id != given
    assert len(request_id) == 32


@pytest.mark.parametrize("path", ["/models", "/nothing", "/", "/docs", "/metrics"])
async def test_every_response_has_an_id_of_its_own(client: httpx.AsyncClient, path: str) -> None:
    ids = {(await client.get(path)).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
