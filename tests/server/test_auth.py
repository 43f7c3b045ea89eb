from __future__ import annotations

import httpx
import pytest

from tests.server.tiny_server import build_debug_app, client_of, embed

pytestmark = pytest.mark.anyio

KEY = "sesam-öffne"


def bearer(key: str, scheme: str = "Bearer") -> dict[bytes, bytes]:
    return {b"authorization": f"{scheme} {key}".encode()}


@pytest.mark.parametrize(
    "method_and_path",
    [
        *("POST /embeddings", "POST /v1/embeddings", "GET /models", "POST /rerank", "POST /v1/classify"),
        *("POST /embed_sparse", "POST /embeddings_image", "POST /v1/embeddings_audio"),
    ],
)
@pytest.mark.parametrize(
    "headers", [{}, bearer("wrong"), bearer(""), bearer(KEY, "Basic"), {b"authorization": KEY.encode()}]
)
async def test_without_the_key_it_is_a_401(method_and_path: str, headers: dict[bytes, bytes]) -> None:
    method, path = method_and_path.split()
    async with client_of(build_debug_app(api_key=KEY)) as client:
        response = await client.request(method, path, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["detail"] == "Unauthorized"
    assert response.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_with_the_key_it_serves(scheme: str) -> None:
    async with client_of(build_debug_app(api_key=KEY), headers=bearer(KEY, scheme)) as client:
        assert (await embed(client)).status_code == 200
        assert (await client.get("/v1/models/debug")).status_code == 200


async def test_the_key_is_checked_before_the_body_is_read() -> None:
    async with client_of(build_debug_app(api_key=KEY, max_body_bytes=10)) as client:
        for content in (b"{", b"x" * 100):
            response = await client.post("/embeddings", content=content)
            assert response.status_code == 401


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_probes_metrics_and_docs_are_open(prefix: str) -> None:
    app = build_debug_app(api_key=KEY, url_prefix=prefix, proxy_root_path="/proxy")
    async with client_of(app) as client:
        for path in ("/health", "/ready", "/metrics", f"{prefix}/docs", f"{prefix}/openapi.json"):
            assert (await client.get(path)).status_code == 200
            assert (await client.get(f"/proxy{path}")).status_code == 200
        assert (await client.get(f"{prefix}/docs/swagger-ui.css")).status_code == 200
        assert (await client.get("/")).status_code == 307


async def test_a_path_that_is_not_declared_open_is_closed() -> None:
    """A route that somebody adds later must not be open because somebody forgot to close it."""
    app = build_debug_app(api_key=KEY)
    app.add_api_route("/later", lambda: "open")
    async with client_of(app) as client:
        for path in ("/later", "/docs/later", "/health/", "/healthy"):
            assert (await client.get(path)).status_code == 401


async def test_without_a_configured_key_everybody_is_let_in(client: httpx.AsyncClient) -> None:
    assert (await client.post("/embeddings", json={"input": "a"}, headers=bearer("any"))).status_code == 200
