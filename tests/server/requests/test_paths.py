"""HEAD wherever GET is, and paths with superfluous slashes."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.tiny_server import build_debug_app, client_of

pytestmark = pytest.mark.anyio

TEXT = {"input": "hello"}
KEY = {"authorization": "Bearer api-secret"}
ADMIN = {"authorization": "Bearer admin-secret"}


def list_get_paths(app: Any) -> list[str]:
    paths = {route.path for route in app.routes if "GET" in (getattr(route, "methods", None) or ())}
    return [path.replace("{model_id:path}", "debug").replace("{name}", "swagger-ui.css") for path in paths]


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_head_is_answered_wherever_get_is(prefix: str) -> None:
    """Health checks by `wget --spider`, uptime monitors and Ollama's CLI send it."""
    app = build_debug_app(url_prefix=prefix)
    paths = list_get_paths(app)
    assert len(paths) > 10
    async with client_of(app) as client:
        for path in paths:
            got, headed = await client.get(path), await client.head(path)
            assert headed.status_code == got.status_code, path
            assert headed.headers["content-type"] == got.headers["content-type"] if got.content else True
            assert headed.headers.get("location") == got.headers.get("location")
            assert headed.content == b""


async def test_head_has_a_row_in_the_metrics_and_a_request_id(client: httpx.AsyncClient) -> None:
    for path in ("/health", "/models/debug"):
        response = await client.head(path, headers={"x-request-id": "mine"})
        assert response.headers["x-request-id"] == "mine"
    metrics = (await client.get("/metrics")).text
    for route in ("/health", "/models/{model_id:path}"):
        assert f'http_requests_total{{handler="{route}",method="HEAD",status="2xx"}} 1.0' in metrics


async def test_head_of_a_post_is_a_405(client: httpx.AsyncClient) -> None:
    response = await client.head("/embeddings")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


async def test_head_needs_the_key_that_get_needs() -> None:
    async with client_of(build_debug_app(api_key="api-secret")) as client:
        assert (await client.head("/models")).status_code == 401
        assert (await client.head("/models", headers=KEY)).status_code == 200
        assert (await client.head("/health")).status_code == 200


@pytest.mark.parametrize("root", ["", "/inf/api"])
@pytest.mark.parametrize("prefix", ["", "/prefix"])
@pytest.mark.parametrize("is_stripped", [True, False])
async def test_superfluous_slashes_are_ignored_and_nobody_is_redirected(
    root: str, prefix: str, is_stripped: bool
) -> None:
    """The redirect went to the address behind the proxy, without the proxy's prefix."""
    app = build_debug_app(proxy_root_path=root, url_prefix=prefix)
    before = "" if is_stripped else root
    async with client_of(app, follow_redirects=False) as client:
        for path in ("/v1/embeddings", "/embeddings"):
            for spelled in (f"{path}/", f"/{path}", path.replace("/emb", "//emb"), f"//{path}///"):
                url = httpx.URL("http://test").copy_with(path=f"{before}{prefix}{spelled}")
                assert (await client.post(url, json=TEXT)).status_code == 200, url
                url = httpx.URL("http://test").copy_with(path=f"//{before}{prefix}{spelled}")
                assert (await client.post(url, json=TEXT)).status_code == 200, url
        for path in ("/health", "/ready", "/metrics"):
            assert (await client.get(f"{before}{path}/")).status_code == 200


@pytest.mark.parametrize("root", ["", "/inf/api"])
async def test_the_root_leads_to_the_page_with_and_without_a_slash(root: str) -> None:
    app = build_debug_app(proxy_root_path=root)
    async with client_of(app) as client:
        for path in {root or "/", f"{root}/", "/", "//"}:
            response = await client.get(httpx.URL("http://test").copy_with(path=path))
            assert response.headers["location"] == f"{root}/ui", path


async def test_slashes_open_no_path_that_needs_a_key() -> None:
    app = build_debug_app(api_key="api-secret", admin_key="admin-secret")
    async with client_of(app) as client:
        for path in ("/models", "/admin/models", "/embeddings"):
            for spelled in (
                f"/{path}",
                f"{path}/",
                f"/{path}//",
                path.replace("/m", "///m"),
                f"/health/..{path}",
            ):
                url = httpx.URL("http://test").copy_with(raw_path=spelled.encode())
                assert (await client.get(url)).status_code == 401, spelled
        for path in ("//admin/models", "/admin//models", "/admin/models/"):
            url = httpx.URL("http://test").copy_with(raw_path=path.encode())
            assert (await client.get(url, headers=KEY)).status_code == 401, "that is the admin's"
            assert (await client.get(url, headers=ADMIN)).status_code == 200


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/v1/embeddings", "/v1/embeddings"),
        ("/V1/embeddings", "/v1/embeddings"),
        ("/v1/embeddings/embeddings", "/v1/embeddings"),
        ("/v1/embedding", "/v1/embeddings"),
        ("/v1/rerank/rerank", "/v1/rerank"),
    ],
)
async def test_a_404_names_the_path_that_was_meant(client: httpx.AsyncClient, path: str, meant: str) -> None:
    response = await client.post(path, json=TEXT)
    assert response.status_code == 404
    assert response.json()["error"]["message"] == f"Not Found: POST {path}; did you mean {meant!r}?"
    assert response.json()["detail"] == "Not Found"


async def test_a_path_like_no_other_is_a_404_without_a_suggestion(client: httpx.AsyncClient) -> None:
    for path in ("/one-that-is-nowhere", "/" + "x" * 60_000):
        response = await client.get(path)
        assert response.status_code == 404
        assert "did you mean" not in response.text
        assert len(response.content) < 1000
