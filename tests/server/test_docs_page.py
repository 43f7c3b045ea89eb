from __future__ import annotations

import re

import httpx
import pytest

from tests.server.tiny_server import build_debug_app, client_of

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("prefix", ["", "/v1", "/api"])
@pytest.mark.parametrize("root", ["", "/proxy"])
async def test_the_page_and_all_that_it_loads_come_from_this_server(prefix: str, root: str) -> None:
    app = build_debug_app(url_prefix=prefix, proxy_root_path=root)
    async with client_of(app) as client:
        page = await client.get(f"{prefix}/docs")
        assert page.status_code == 200
        links = re.findall(r"""(?:href|src|url)(?:=|: )["']([^"']+)["']""", page.text)
        assert len(links) == 4
        for link in links:
            assert link.startswith(f"{root}{prefix}/")
            assert (await client.get(link.removeprefix(root))).status_code == 200
    assert "://" not in page.text


async def test_no_badge_asks_another_server(client: httpx.AsyncClient) -> None:
    assert '"validatorUrl": null' in (await client.get("/docs")).text


async def test_assets_have_their_types(client: httpx.AsyncClient) -> None:
    types = {"swagger-ui-bundle.js": "javascript", "swagger-ui.css": "text/css", "favicon-32x32.png": "png"}
    for name, kind in types.items():
        response = await client.get(f"/docs/{name}")
        assert kind in response.headers["content-type"]
        assert "max-age" in response.headers["cache-control"]


@pytest.mark.parametrize("name", ["other.js", "..%2F__init__.py", "%2Fetc%2Fpasswd"])
async def test_nothing_else_is_served(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.get(f"/docs/{name}")).status_code == 404


async def test_there_is_no_redoc(client: httpx.AsyncClient) -> None:
    assert (await client.get("/redoc")).status_code == 404


@pytest.mark.parametrize(
    ("config", "target"),
    [
        ({}, "/docs"),
        ({"url_prefix": "/v1"}, "/v1/docs"),
        ({"url_prefix": "/v1", "proxy_root_path": "/proxy"}, "/proxy/v1/docs"),
        ({"url_prefix": "/v1", "redirect_slash": "/v1/models"}, "/v1/models"),
    ],
)
async def test_the_root_leads_to_a_page_that_exists(config: dict[str, str], target: str) -> None:
    app = build_debug_app(**config)
    async with client_of(app) as client:
        response = await client.get("/")
        assert response.status_code == 307
        assert response.headers["location"] == target
        there = target.removeprefix(config.get("proxy_root_path", ""))
        assert (await client.get(there)).status_code == 200


async def test_an_empty_redirect_switches_the_root_off() -> None:
    async with client_of(build_debug_app(redirect_slash="")) as client:
        assert (await client.get("/")).status_code == 405  # a model answers what is posted there


async def test_the_page_and_the_document_can_be_left_out() -> None:
    app = build_debug_app(docs=False)
    async with client_of(app) as client:
        for path in ("/docs", "/openapi.json", "/docs/swagger-ui.css", "/redoc"):
            assert (await client.get(path)).status_code == 404, path
        assert (await client.get("/")).status_code == 405, "a model answers what is posted there"
        assert (await client.post("/embeddings", json={"input": "a"})).status_code == 200


async def test_the_root_may_lead_elsewhere_without_the_page() -> None:
    async with client_of(build_debug_app(docs=False, redirect_slash="/models")) as client:
        assert (await client.get("/")).headers["location"] == "/models"


async def test_with_a_key_nothing_of_the_page_is_open_where_it_is_left_out() -> None:
    async with client_of(build_debug_app(docs=False, api_key=("secret",))) as client:
        assert (await client.get("/openapi.json")).status_code == 401
