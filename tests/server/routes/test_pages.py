from __future__ import annotations

import pytest

from tests.support.tiny_server import build_debug_app, client_of

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("config", "target"),
    [
        ({}, "/ui"),
        ({"ui": False}, "/docs"),
        ({"docs": False}, "/ui"),
        ({"redirect_slash": "/docs"}, "/docs"),
        ({"url_prefix": "/v1"}, "/v1/ui"),
        ({"url_prefix": "/v1", "ui": False}, "/v1/docs"),
        ({"url_prefix": "/v1", "redirect_slash": "/docs"}, "/v1/docs"),
        ({"url_prefix": "/v1", "proxy_root_path": "/proxy"}, "/proxy/v1/ui"),
        ({"url_prefix": "/v1", "redirect_slash": "/v1/models"}, "/v1/models"),
        ({"ui": False, "docs": False, "redirect_slash": "/models"}, "/models"),
    ],
)
async def test_the_root_leads_to_a_page_that_exists(config: dict[str, str], target: str) -> None:
    async with client_of(build_debug_app(**config)) as client:
        response = await client.get("/")
        assert response.status_code == 307
        assert response.headers["location"] == target
        there = target.removeprefix(config.get("proxy_root_path", ""))
        assert (await client.get(there)).status_code == 200


@pytest.mark.parametrize(
    "config",
    [{"redirect_slash": ""}, {"ui": False, "docs": False}, {"docs": False, "redirect_slash": "/docs"}],
)
async def test_the_root_leads_nowhere_without_a_page(config: dict[str, str]) -> None:
    async with client_of(build_debug_app(**config)) as client:
        assert (await client.get("/")).status_code == 405  # a model answers what is posted there
