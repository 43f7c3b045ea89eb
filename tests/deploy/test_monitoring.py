"""The dashboard and the alert rules, evaluated by Prometheus against a running server."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.server_process import DEADLINE_S, FAKE, Server, StartServer

FOLDER = Path(__file__).parents[2] / "deploy" / "monitoring"
RULES = FOLDER / "alerts.yml"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
VARIABLES = {"$__rate_interval": "1m", "$model": ".*"}
CONFIG = """
global: {{scrape_interval: 250ms, scrape_timeout: 250ms}}
scrape_configs: [{{job_name: infinity, static_configs: [{{targets: ["{target}"]}}]}}]
"""

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus is not installed (Debian: apt-get install prometheus)",
)


def list_dashboard_expressions() -> list[str]:
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    for name, value in VARIABLES.items():
        expressions = [expression.replace(name, value) for expression in expressions]
    return expressions


def list_alert_expressions() -> list[str]:
    """Without their thresholds: an alert that does not fire has no series."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [re.split(r" (?:>|==) ", rule["expr"])[0] for group in groups for rule in group["rules"]]


@pytest.fixture
def server(serve: StartServer) -> Server:
    server = serve("v2", *FAKE, "--model-id", "debug?fail_on=poison", "--served-model-name", "debug")
    for texts in (["a", "b"], ["poison"], []):
        httpx.post(f"{server.url}/embeddings", json={"input": texts}, timeout=DEADLINE_S)
    return server


@pytest.fixture
def prometheus(server: Server, tmp_path: Path) -> Iterator[httpx.Client]:
    config = tmp_path / "prometheus.yml"
    config.write_text(CONFIG.format(target=server.url.removeprefix("http://")))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address={address}",
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        with httpx.Client(base_url=f"http://{address}", timeout=DEADLINE_S) as client:
            yield client
        process.kill()


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


@needs_prometheus
def test_every_expression_matches_series_of_a_running_server(prometheus: httpx.Client) -> None:
    missing = [*list_dashboard_expressions(), *list_alert_expressions()]
    deadline_s = time.monotonic() + DEADLINE_S
    while missing and time.monotonic() < deadline_s:
        missing = [expression for expression in missing if not find_series(prometheus, expression)]
    assert missing == []


@needs_prometheus
def test_promtool_accepts_the_rules_and_the_metrics(server: Server) -> None:
    rules = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert rules.returncode == 0, rules.stderr
    metrics = httpx.get(f"{server.url}/metrics").text
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=metrics, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_panels_do_not_overlap_and_each_says_what_it_shows() -> None:
    panels = DASHBOARD["panels"]
    assert all(panel["title"] and panel["description"] for panel in panels)
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for grid in [panel["gridPos"]]
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_alerts_name_their_severity_and_what_happened() -> None:
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"].endswith(".")
