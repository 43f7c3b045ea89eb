"""Keys, a failing server and a slow one."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.server.ui.conftest import OpenPage
from tests.support.server_process import Server

pytestmark = pytest.mark.browser

KEY = "key-of-the-api"


@pytest.fixture(scope="module")
def server(start_models: Callable[..., Server]) -> Server:
    return start_models("broken=kind=embedder&fail_on=poison", "slow=kind=reranker&delay_s=40")


@pytest.fixture(scope="module")
def locked(start_models: Callable[..., Server]) -> Server:
    return start_models("model=kind=embedder", options=("--api-key", KEY, "--metrics", "key"))


def give_key(page: Page, key: str, *, remember: bool = False) -> None:
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("API key").fill(key)
    dialog.get_by_label("Remember").set_checked(remember)
    dialog.get_by_role("button", name="Use key").click()


def test_a_key_is_asked_for_and_forgotten_with_the_page(open_page: OpenPage, locked: Server) -> None:
    page = open_page(f"{locked.url}/ui")
    refused = httpx.get(f"{locked.url}/models").json()["error"]["message"]
    expect(page.get_by_role("dialog")).to_contain_text("The server asks for an API key.")
    give_key(page, "wrong")
    expect(page.get_by_role("dialog")).to_contain_text("The server refused this key.")
    give_key(page, KEY)
    page.get_by_role("button", name="Embed").click()
    expect(page.locator(".heat")).to_be_visible()
    assert "INFINITY_API_KEY" in page.locator("#view-embed pre").inner_text()
    assert KEY not in page.content()
    assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    page.reload()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#catalog-error")).to_contain_text(refused)


def test_a_key_is_kept_where_the_user_asks_for_it_until_it_is_forgotten(
    open_page: OpenPage, locked: Server
) -> None:
    page = open_page(f"{locked.url}/ui#live")
    give_key(page, KEY, remember=True)
    expect(page.locator(".live-models tbody tr")).to_have_count(1)
    page.reload()
    expect(page.locator(".live-models tbody tr")).to_have_count(1)
    page.get_by_role("button", name="API key").click()
    page.get_by_role("button", name="Forget key").click()
    assert page.evaluate("localStorage.length") == 0


def test_errors_are_told_in_the_words_of_the_server(open_page: OpenPage, server: Server) -> None:
    page = open_page(f"{server.url}/ui#embed")
    page.locator("#view-embed").get_by_label("Texts").fill("fine\npoison")
    page.get_by_role("button", name="Embed").click()
    body = {"model": "broken", "input": ["fine", "poison"]}
    message = httpx.post(f"{server.url}/embeddings", json=body, timeout=60).json()["error"]["message"]
    expect(page.locator("#view-embed").get_by_role("alert")).to_have_text(f"{message} (status 500)")


def test_what_a_proxy_says_is_shown_as_text(open_page: OpenPage, server: Server) -> None:
    page = open_page(f"{server.url}/ui#embed")
    page.route("**/embeddings", lambda route: route.fulfill(status=502, body="<b>Bad gateway</b>"))
    page.get_by_role("button", name="Embed").click()
    alert = page.locator("#view-embed").get_by_role("alert")
    expect(alert).to_have_text("<b>Bad gateway</b> (status 502)")


def test_a_slow_request_can_be_cancelled(open_page: OpenPage, server: Server) -> None:
    page = open_page(f"{server.url}/ui#rerank")
    view = page.locator("#view-rerank")
    view.get_by_label("Model").select_option("slow")
    view.get_by_role("button", name="Rerank").click()
    expect(view.get_by_role("status").first).to_have_text("Waiting for the server…")
    view.get_by_role("button", name="Cancel").click()
    expect(view.get_by_role("alert")).to_have_text("Cancelled.")
    expect(view.get_by_role("button", name="Rerank")).to_be_focused()


def test_no_request_waits_for_ever(open_page: OpenPage, server: Server) -> None:
    page = open_page("about:blank")
    page.clock.install()
    page.goto(f"{server.url}/ui#rerank")
    view = page.locator("#view-rerank")
    view.get_by_label("Model").select_option("slow")
    view.get_by_role("button", name="Rerank").click()
    expect(view.get_by_role("status").first).to_have_text("Waiting for the server…")
    page.clock.fast_forward(121_000)
    expect(view.get_by_role("alert")).to_contain_text("No response within 120 seconds")


def test_a_server_that_is_gone_is_named_and_can_be_tried_again(open_page: OpenPage, server: Server) -> None:
    page = open_page(f"{server.url}/ui#models")
    expect(page.locator("article")).to_have_count(2)
    page.route("**/models", lambda route: route.abort())
    page.goto(f"{server.url}/ui?again#models")
    expect(page.locator("#catalog-error")).to_contain_text("The server cannot be reached")
    page.unroute("**/models")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("article")).to_have_count(2)
