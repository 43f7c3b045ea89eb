"""The docs page in a real browser that can reach nothing but the server."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.server_process import FAKE, StartServer

CHROMIUM = shutil.which("chromium")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")
def test_the_docs_page_shows_every_route_without_internet(serve: StartServer, tmp_path: Path) -> None:
    server = serve("v2", *FAKE, "--model-id", "debug")
    command = [
        str(CHROMIUM),
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=10000",
        "--dump-dom",
        f"{server.url}/docs",
    ]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "Infinity - Embedding Inference Server" in page
    for path in ("/embeddings", "/models", "/health", "/ready", "/metrics"):
        assert f'data-path="{path}"' in page
