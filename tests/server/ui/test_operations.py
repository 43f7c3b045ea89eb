"""The models and the live figures."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, expect

from tests.server.ui.conftest import OpenPage
from tests.support.server_process import Server

pytestmark = pytest.mark.browser

ADMIN_KEY = "key-of-the-admin"
VIEWS = ("embed", "rerank", "classify", "models", "live")


@pytest.fixture(scope="module")
def server(start_models: Callable[..., Server]) -> Server:
    models = ("clip=kind=embedder", "ranker=kind=reranker", "labels=kind=classifier")
    return start_models(*models, options=("--admin-key", ADMIN_KEY))


def test_models_are_described_loaded_and_unloaded(open_page: OpenPage, server: Server) -> None:
    page = open_page(f"{server.url}/ui#models")
    expect(page.get_by_role("article", name="clip")).to_contain_text("embeds images")
    page.get_by_label("Model id or folder").fill("extra?kind=embedder")
    page.get_by_label("Served name").fill("an/extra")
    page.get_by_label("Further options").fill("engine: nonsense")
    page.get_by_role("button", name="Load", exact=True).click()
    page.get_by_role("dialog").get_by_label("Admin key").fill(ADMIN_KEY)
    page.get_by_role("button", name="Use key").click()
    expect(page.locator("#view-models").get_by_role("alert")).to_contain_text("nonsense")
    page.get_by_label("Further options").fill("--engine debugengine")
    page.get_by_role("button", name="Load", exact=True).click()
    expect(page.get_by_role("article", name="an/extra")).to_contain_text("debugengine")
    page.get_by_role("button", name="Reload an/extra").click()
    expect(page.locator("#view-models").get_by_role("status")).to_have_text("Reloading an/extra: done.")
    page.get_by_role("button", name="Unload an/extra").click()
    page.get_by_role("dialog").get_by_role("button", name="Unload", exact=True).click()
    expect(page.get_by_role("article", name="an/extra")).to_have_count(0)


def test_live_figures_follow_the_traffic(open_page: OpenPage, server: Server) -> None:
    page = open_page(f"{server.url}/ui#live")

    def find_figure(name: str) -> Locator:
        return page.locator(".figure", has_text=name).locator(".figure-value")

    expect(page.locator(".live-models tbody tr")).to_have_count(3)
    with page.expect_response("**/metrics"):
        pass
    for _ in range(5):
        body = {"model": "clip", "input": ["four", "five"]}
        httpx.post(f"{server.url}/embeddings", json=body, timeout=60).raise_for_status()
    expect(find_figure("p50")).to_contain_text("s")  # it stays for half a minute
    expect(find_figure("Inputs/batch")).to_have_text("2")
    expect(find_figure("Batch fill")).to_have_text("0 %")  # 8 of thousands of tokens


def test_nothing_is_asked_while_nobody_looks(open_page: OpenPage, server: Server) -> None:
    page = open_page("about:blank")
    page.clock.install()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.url}/ui#live")
    expect(page.locator(".live-models tbody tr")).to_have_count(3)
    with page.expect_request("**/metrics"):
        page.clock.fast_forward(2100)
    page.get_by_role("link", name="Rerank").click()
    expect(page.locator("#view-rerank")).to_be_visible()
    page.wait_for_load_state("networkidle")
    asked.clear()
    page.clock.run_for(20_000)
    assert asked == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_every_view_fits_the_screen_and_is_accessible(
    open_page: OpenPage, server: Server, width: int, scheme: str
) -> None:
    # The checker itself is a script that the policy of the page would forbid.
    page = open_page(f"{server.url}/ui", width=width, color_scheme=scheme, bypass_csp=True)
    for name in VIEWS:
        page.goto(f"{server.url}/ui#{name}")
        view = page.locator(f"#view-{name}")
        expect(view.locator("article, option, tbody tr").first).to_be_attached()
        if name in VIEWS[:3]:
            view.locator("button[type=submit]").click()
            expect(view.locator(".results")).to_be_visible()
        page.wait_for_function("document.getAnimations().length === 0")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        violations = Axe().run(page).response["violations"]
        found = [
            (each["id"], node["html"], node["failureSummary"])
            for each in violations
            for node in each["nodes"]
        ]
        assert found == [], name
