"""Fixtures: a real browser that reaches nothing but this machine, and servers of the fake engine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.server_process import FAKE, Server

CHROMIUM = shutil.which("chromium")
PATIENCE_MS = 60_000
OpenPage = Callable[..., Page]
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(autouse=True)
def _needs_chromium() -> None:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # For one module only: while it runs, the thread has an event loop, which other tests want to have.
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens a page in a browser of its own; a script that fails, fails the test."""
    contexts, errors = [], []

    def open_(url: str, *, width: int = 1280, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        # A violation of the policy is reported on the console only.
        page.on("console", lambda each: errors.append(each.text) if "Content Security" in each.text else None)
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture(scope="module")
def start_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts a server of fake models, given as `name=kind and faults`."""
    servers: list[Server] = []

    def start(*models: str, options: tuple[str, ...] = ()) -> Server:
        words = [word for model in models for word in _name(model)]
        home = str(tmp_path_factory.mktemp("home"))
        servers.append(Server(*FAKE, *words, *options, INFINITY_HOME=home))
        return servers[-1].wait_until_listening()

    yield start
    for server in servers:
        server.kill()


def _name(model: str) -> list[str]:
    name, _, query = model.partition("=")
    return ["--model-id", f"{name}?{query}", "--served-model-name", name]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    from PIL import Image

    path = tmp_path / "a cat's 100%.png"
    Image.new("RGB", (24, 16), "orange").save(path)
    return path
