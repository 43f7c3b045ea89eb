from __future__ import annotations

import re
from types import SimpleNamespace

import httpx
import orjson
import pytest

from infinity_emb.server import server_app
from tests.support.tiny_server import build_debug_app, client_of

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


async def test_the_page_and_the_document_can_be_left_out() -> None:
    app = build_debug_app(docs=False)
    async with client_of(app) as client:
        for path in ("/docs", "/openapi.json", "/docs/swagger-ui.css", "/redoc"):
            assert (await client.get(path)).status_code == 404, path
        assert (await client.post("/embeddings", json={"input": "a"})).status_code == 200


async def test_with_a_key_nothing_of_the_page_is_open_where_it_is_left_out() -> None:
    async with client_of(build_debug_app(docs=False, api_key=("secret",))) as client:
        assert (await client.get("/openapi.json")).status_code == 401


async def test_the_document_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine hundred requests for it, for which no key is needed, held the event loop for seconds."""
    encoded: list[object] = []
    dumps = orjson.dumps

    def note(content: object) -> bytes:
        encoded.append(content)
        return dumps(content)

    app = build_debug_app(proxy_root_path="/proxy")
    async with client_of(app) as client:
        monkeypatch.setattr(server_app, "orjson", SimpleNamespace(dumps=note))
        documents = [(await client.get("/openapi.json")).json() for _ in range(3)]
        assert documents == [{**app.openapi(), "servers": [{"url": "/proxy"}]}] * 3
        assert len(encoded) == 1
        app.openapi_schema = {"info": "another"}
        assert (await client.get("/openapi.json")).json()["info"] == "another"
