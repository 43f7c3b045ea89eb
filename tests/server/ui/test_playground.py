"""The playground as a person uses it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.server.ui.conftest import OpenPage
from tests.support.server_process import CLEAN_ENVIRON, Server

pytestmark = pytest.mark.browser

MODELS = (
    "clip=kind=embedder&fail_on=poison",
    "splade=kind=sparse",
    "colbert=kind=multivector",
    "ranker=kind=reranker",
    "labels=kind=classifier",
)
NASTY = """<img src=x onerror="document.title='owned'"> it's "50%" \\n $HOME `id` ü 🙂"""


@pytest.fixture(scope="module")
def server(start_models: Callable[..., Server]) -> Server:
    return start_models(*MODELS, options=("--url-prefix", "/api"))


def open_view(open_page: OpenPage, server: Server, name: str) -> tuple[Page, Locator]:
    page = open_page(f"{server.url}/api/ui#{name}")
    view = page.locator(f"#view-{name}")
    expect(view.locator("select[name=model] option").first).to_be_attached()
    return page, view


def run(view: Locator) -> None:
    view.locator("button[type=submit]").click()
    expect(view.locator(".results")).to_be_visible()


@pytest.mark.parametrize("model", ["clip", "splade", "colbert"])
def test_texts_become_a_heat_map_and_a_projection(open_page: OpenPage, server: Server, model: str) -> None:
    _, view = open_view(open_page, server, "embed")
    view.get_by_label("Model").select_option(model)
    view.get_by_label("Texts").fill("aa\nbbbb\n\nabab")
    run(view)
    expect(view.locator(".heat tbody tr")).to_have_count(3)
    cells = view.locator(".heat tbody td").all_text_contents()
    diagonal = [float(cells[4 * i]) for i in range(3)]
    assert diagonal == [1, 1, 1]
    assert all(float(cells[3 * i + j]) == float(cells[3 * j + i]) for i in range(3) for j in range(3))
    expect(view.locator(".projection circle")).to_have_count(3)
    expect(view.get_by_role("status").first).to_contain_text("3 vectors of")


def test_images_are_compared_with_texts(open_page: OpenPage, server: Server, image: Path) -> None:
    _, view = open_view(open_page, server, "embed")
    view.get_by_label("Model").select_option("clip")
    view.get_by_label("Texts").fill("a cat")
    view.locator("input[type=file]").set_input_files(image)
    run(view)
    assert view.locator(".heat tbody th").all_text_contents() == ["1 a cat", f"2 {image.name}"]
    view.get_by_role("button", name=f"Remove {image.name}").click()
    expect(view.locator(".thumbnails li")).to_have_count(0)
    view.get_by_label("Model").select_option("splade")
    expect(view.locator("input[type=file]")).to_be_hidden()


def test_an_image_can_be_dropped(open_page: OpenPage, server: Server, image: Path) -> None:
    page, view = open_view(open_page, server, "embed")
    view.get_by_label("Model").select_option("clip")
    data = page.evaluate_handle(
        """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
            return transfer;
        }""",
        list(image.read_bytes()),
    )
    view.locator(".image-field").dispatch_event("drop", {"dataTransfer": data})
    expect(view.get_by_role("img", name="dropped.png")).to_be_visible()


def test_documents_are_reordered_with_their_scores(open_page: OpenPage, server: Server) -> None:
    _, view = open_view(open_page, server, "rerank")
    view.get_by_label("Documents").fill("a\naaa\naa")
    run(view)
    assert view.locator(".ranking p").all_text_contents() == ["aaa", "aa", "a"]
    expect(view.locator(".ranking li").first).to_contain_text("from 2 to 1")
    body = {"model": "ranker", "query": "Where do penguins live?", "documents": ["a", "aaa", "aa"]}
    scores = [
        each["relevance_score"]
        for each in httpx.post(f"{server.url}/api/rerank", json=body, timeout=60).json()["results"]
    ]
    shown = [float(text) for text in view.locator(".bar-value").all_text_contents()]
    assert shown == pytest.approx(scores, rel=0.01)


def test_labels_are_shown_as_bars(open_page: OpenPage, server: Server) -> None:
    _, view = open_view(open_page, server, "classify")
    view.get_by_label("Texts").fill("abc")
    run(view)
    assert view.locator(".bar-name").all_text_contents() == ["characters", "none"]


def test_text_never_becomes_html(open_page: OpenPage, server: Server) -> None:
    for name, field in (("embed", "Texts"), ("rerank", "Documents"), ("classify", "Texts")):
        page, view = open_view(open_page, server, name)
        view.get_by_label(field).fill(NASTY)
        run(view)
        expect(view.locator(".results").get_by_text(NASTY[:30]).first).to_be_visible()
        assert view.locator(".results img").count() == 0
        assert page.title() != "owned"


@pytest.mark.parametrize(
    ("name", "model"),
    [
        *(("embed", model) for model in ("clip", "splade", "colbert")),
        ("rerank", "ranker"),
        ("classify", "labels"),
    ],
)
def test_the_code_to_copy_does_what_the_page_does(
    open_page: OpenPage, server: Server, name: str, model: str, image: Path
) -> None:
    _, view = open_view(open_page, server, name)
    view.get_by_label("Model").select_option(model)
    view.locator("textarea").fill(f"{NASTY}\nplain")
    if model == "clip":
        view.locator("input[type=file]").set_input_files(image)
    for language in ("curl", "Python", "OpenAI client"):
        view.get_by_label(language, exact=True).check(force=True)
        code = view.locator("pre").inner_text()
        # Other tests look at what is returned: here, that the server accepts it.
        command = ["bash", "-c"] if language == "curl" else [sys.executable, "-c"]
        for part in code.split("\n\n") if language == "curl" else [code]:
            done = subprocess.run(
                [*command, part],
                env=CLEAN_ENVIRON,
                cwd=image.parent,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            if language == "curl":
                assert json.loads(done.stdout).get("model") == model, done.stdout


def test_the_keyboard_alone_is_enough(open_page: OpenPage, server: Server) -> None:
    page, view = open_view(open_page, server, "embed")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.get_by_role("link", name="Rerank").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Rerank")).to_be_visible()
    expect(page.locator("#main")).to_be_focused()
    view = page.locator("#view-rerank")
    view.get_by_label("Documents").focus()
    page.keyboard.press("Control+Enter")
    expect(view.locator(".results")).to_be_visible()


def test_the_projection_is_that_of_a_principal_component_analysis(
    open_page: OpenPage, server: Server
) -> None:
    page, _ = open_view(open_page, server, "embed")
    vectors = np.random.default_rng(0).normal(size=(7, 40))
    script = f"""async (vectors) => (await import("{server.url}/api/ui/vectors.js")).project(vectors)"""
    found = page.evaluate(script, vectors.tolist())
    left, lengths, _ = np.linalg.svd(vectors - vectors.mean(axis=0))
    expected = left[:, :2] * lengths[:2]
    assert np.abs(found["points"]) == pytest.approx(np.abs(expected), abs=1e-3)
    assert found["explained"] == pytest.approx(lengths[:2] ** 2 / np.sum(lengths**2), abs=1e-4)
