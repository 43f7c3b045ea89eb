"""Measure the page at `/ui` in Chromium: requests, bytes, first paint and load, on a first visit and again.

    python -m benchmarks.page [--visits 7] [--shots FOLDER]

Each visit has a browser profile of its own, in which it is repeated. The fake engine serves, on the same
machine. With `--shots`, every view is also saved as a picture: phone and desktop, light and dark. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.rounds import describe_machine
from benchmarks.serve import Server

VIEWS = ("embed", "rerank", "classify", "models", "live")
WIDTHS = {"phone": 390, "desktop": 1440}
MODELS = ("embedder", "reranker", "classifier")
# Bytes are those of the network, headers included: a file that has not changed is a 304 without a body.
READ = """() => {
  const entries = performance.getEntriesByType("resource");
  const [page] = performance.getEntriesByType("navigation");
  const [paint] = performance.getEntriesByName("first-contentful-paint");
  return {
    requests: 1 + entries.length,
    bytes: [page, ...entries].reduce((sum, each) => sum + each.transferSize, 0),
    first_paint_ms: paint.startTime,
    load_ms: page.loadEventStart,
  };
}"""


def main() -> int:
    """Visit the page and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--visits", type=int, default=7)
    parser.add_argument("--shots", type=Path, metavar="FOLDER", help="save a picture of every view there")
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        print("skipped: chromium is not installed (Debian: apt-get install chromium)")
        return 0
    flags = ["--engine", "debugengine"]
    for kind in MODELS:
        flags += ["--model-id", f"debug?kind={kind}", "--served-model-name", kind]
    server = Server(flags)
    url = f"http://127.0.0.1:{server.port}"
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            visits = [visit(browser, url) for _ in range(options.visits)]
            if options.shots:
                take_pictures(browser, url, options.shots)
    finally:
        server.close()
    print_report(visits)
    return 0


def visit(browser: Browser, url: str) -> dict[str, dict[str, float]]:
    """Return the figures of a first visit, and of a second one in the same profile."""
    context = browser.new_context()
    page = context.new_page()
    figures = {}
    for name in ("first", "again"):
        page.goto(f"{url}/ui", wait_until="load")
        page.wait_for_load_state("networkidle")
        figures[name] = page.evaluate(READ)
    context.close()
    return figures


def take_pictures(browser: Browser, url: str, folder: Path) -> None:
    """Use every view, and save how it looks."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, width in WIDTHS.items():
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page = context.new_page()
            for view in VIEWS:
                page.goto(f"{url}/ui#{view}")
                use_view(page, view)
                page.screenshot(path=str(folder / f"{name}-{scheme}-{view}.png"), full_page=True)
            context.close()


def use_view(page: Page, view: str) -> None:
    """Send the form of a view, or wait until its figures are there."""
    if view in VIEWS[:3]:
        page.locator(f"#view-{view} option").first.wait_for(state="attached")
        page.locator(f"#view-{view} button[type=submit]").click()
        page.locator(f"#view-{view} .results").wait_for()
        page.wait_for_timeout(600)  # documents move to their places
    elif view == "live":
        page.wait_for_timeout(5000)  # two readings


def print_report(visits: list[dict[str, dict[str, float]]]) -> None:
    """Print the medians with their range, and the JSON line."""
    result: dict[str, Any] = {}
    print(f"\n{describe_machine()}\n")
    for name in ("first", "again"):
        for field in visits[0][name]:
            values = [each[name][field] for each in visits]
            result[f"{name}_{field}"] = median = statistics.median(values)
            print(f"{name:<6} {field:<16} {median:>9,.0f}  {min(values):,.0f} … {max(values):,.0f}")
    print("\n" + json.dumps({"machine": describe_machine(), "medians": result}))


if __name__ == "__main__":
    sys.exit(main())
