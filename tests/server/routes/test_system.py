from __future__ import annotations

import time

import httpx
import pytest

from tests.support.tiny_server import build_debug_app, client_of, debug_args, embed

pytestmark = pytest.mark.anyio


async def test_health_tells_the_time_and_nothing_else(client: httpx.AsyncClient) -> None:
    body = (await client.get("/health")).json()
    assert list(body) == ["unix"]
    assert isinstance(body["unix"], float)
    assert abs(body["unix"] - time.time()) < 10


async def test_ready_when_every_model_runs(client: httpx.AsyncClient) -> None:
    response = await client.get("/ready")
    assert (response.status_code, response.json()) == (200, {"ready": True})


@pytest.mark.usefixtures("dies_for_good")
async def test_one_dead_worker_makes_the_server_unhealthy_and_not_ready() -> None:
    app = build_debug_app(debug_args("good"), debug_args("bad?die_on=end"))
    async with client_of(app) as client:
        assert (await embed(client, "end", model="bad")).status_code == 503
        health, ready = await client.get("/health"), await client.get("/ready")
        assert (await embed(client, "hello", model="good")).status_code == 200
    assert (health.status_code, ready.status_code) == (503, 503)
    assert "bad" in health.json()["error"]["message"]
    assert ready.json()["error"]["message"] == "not ready: bad"


async def test_a_stopped_engine_is_not_ready_but_healthy() -> None:
    """While it drains, an orchestrator must stop sending requests and must not kill it."""
    app = build_debug_app()
    async with client_of(app) as client:
        await app.engine_array.astop()
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 503


async def test_probes_stay_at_the_root_under_a_prefix() -> None:
    async with client_of(build_debug_app(url_prefix="/api")) as client:
        for path in ("/health", "/ready", "/metrics"):
            assert (await client.get(path)).status_code == 200
            assert (await client.get(f"/api{path}")).status_code == 404
