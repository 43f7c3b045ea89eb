from __future__ import annotations

import html
import json
import re
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

import infinity_emb.server
from tests.support.tiny_server import build_debug_app, client_of

pytestmark = pytest.mark.anyio

FOLDER = Path(infinity_emb.server.__file__).parent / "ui"
MODULES = sorted(path.name for path in FOLDER.glob("*.js"))


@pytest.mark.parametrize("prefix", ["", "/v1", "/api/infinity"])
@pytest.mark.parametrize("root", ["", "/proxy"])
async def test_all_that_the_page_loads_is_beside_it_whatever_proxy_is_before_it(
    prefix: str, root: str
) -> None:
    async with client_of(build_debug_app(url_prefix=prefix, proxy_root_path=root)) as client:
        url = f"{root}{prefix}/ui"
        page = await client.get(url)
        assert page.status_code == 200
        links = re.findall(r'(?:href|src)="([^#"][^"]*)"', page.text)
        assert len(links) > 20
        for link in links:
            asset = await client.get(urljoin(url, link))
            assert asset.status_code == 200, link
            assert asset.headers["content-type"].split(";")[0] in {
                "text/css",
                "text/javascript",
                "image/svg+xml",
            }
    assert "://" not in page.text


async def test_every_module_is_loaded_with_the_page_and_every_import_exists(
    client: httpx.AsyncClient,
) -> None:
    page = (await client.get("/ui")).text
    assert sorted(re.findall(r'"ui/(\w+\.js)"', page)) == MODULES
    for name in MODULES:
        imported = re.findall(r'from "\./(.+?)"', (FOLDER / name).read_text(encoding="utf-8"))
        assert set(imported) <= set(MODULES), name


async def test_a_slash_at_the_end_leads_to_the_page(client: httpx.AsyncClient) -> None:
    for path in ("/ui/", "/ui//"):
        response = await client.get(path)
        assert response.status_code == 307
        assert urljoin(f"http://test{path}", response.headers["location"]) == "http://test/ui"


async def test_browsers_load_a_file_again_only_after_a_change(client: httpx.AsyncClient) -> None:
    for path in ("/ui", "/ui/app.js"):
        first = await client.get(path)
        assert first.headers["cache-control"] == "no-cache"
        again = await client.get(path, headers={"if-none-match": f'W/"other", {first.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
        assert (await client.get(path, headers={"if-none-match": '"other"'})).status_code == 200


async def test_the_page_may_load_nothing_from_elsewhere_and_make_no_html_of_text(
    client: httpx.AsyncClient,
) -> None:
    headers = (await client.get("/ui")).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["other.js", "index.html", "..%2F__init__.py", "%2Fetc%2Fpasswd"])
async def test_nothing_else_is_served(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.get(f"/ui/{name}")).status_code == 404


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {"prefix": "", "hasAdmin": False, "hasMetrics": True, "hasDocs": True}),
        (
            {"url_prefix": '/a"b', "admin_key": "secret", "metrics": "off", "docs": False},
            {"prefix": '/a"b', "hasAdmin": True, "hasMetrics": False, "hasDocs": False},
        ),
    ],
)
async def test_the_page_knows_what_the_server_has(
    config: dict[str, object], expected: dict[str, object]
) -> None:
    app = build_debug_app(**config)
    async with client_of(app) as client:
        page = (await client.get(f"{expected['prefix']}/ui")).text
    attribute = re.search(r'data-server="(.*?)"', page)
    assert attribute
    assert json.loads(html.unescape(attribute[1])) == expected
    assert "secret" not in page


async def test_the_page_can_be_left_out() -> None:
    async with client_of(build_debug_app(ui=False)) as client:
        for path in ("/ui", "/ui/app.js"):
            assert (await client.get(path)).status_code == 404
    async with client_of(build_debug_app(ui=False, api_key=("secret",))) as client:
        assert (await client.get("/ui")).status_code == 401


def test_the_files_stay_small_and_readable() -> None:
    for path in FOLDER.iterdir():
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 300, path.name
        if path.suffix == ".js":
            assert lines[0].startswith("// "), f"{path.name} says what it is for"
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 100_000
