"""Prometheus, scraping a running server under the labels that a pod of the chart would have."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.server_process import DEADLINE_S

NAMESPACE, RELEASE = "search", "demo"
SERVICE = f"{RELEASE}-infinity-emb"
POD = f"{SERVICE}-0"
CONFIG = f"""
global: {{scrape_interval: 250ms, scrape_timeout: 250ms}}
scrape_configs:
  - job_name: infinity
    static_configs:
      - targets: [TARGET]
        labels: {{namespace: {NAMESPACE}, service: {SERVICE}, pod: {POD}}}
"""

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus is not installed (Debian: apt-get install prometheus)",
)


@contextlib.contextmanager
def scraping(url: str, folder: Path) -> Iterator[httpx.Client]:
    """Yield a client of a Prometheus that scrapes the server at `url`."""
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.replace("TARGET", url.removeprefix("http://")))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=DEADLINE_S) as client:
            yield client
    finally:
        process.kill()
        process.wait()


def find_series(client: httpx.Client, expression: str) -> list[Any]:
    try:
        response = client.get("/api/v1/query", params={"query": expression})
    except httpx.ConnectError:
        return []
    if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:  # it is starting
        return []
    body = response.json()
    assert body["status"] == "success", f"{expression}: {body}"
    series: list[Any] = body["data"]["result"]
    return series


def wait_for_series(client: httpx.Client, expressions: Sequence[str]) -> list[str]:
    """Return the expressions that match no series within a minute."""
    missing = list(expressions)
    deadline_s = time.monotonic() + DEADLINE_S
    while missing and time.monotonic() < deadline_s:
        missing = [expression for expression in missing if not find_series(client, expression)]
    return missing
