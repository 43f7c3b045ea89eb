"""The dashboard and the alert rules, evaluated by Prometheus against a running server."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import httpx
import yaml

from tests.deploy.prometheus import POD, needs_prometheus, wait_for_series
from tests.support.server_process import Server

FOLDER = Path(__file__).parents[2] / "deploy" / "monitoring"
RULES = FOLDER / "alerts.yml"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
ADAPTER_RULES = yaml.safe_load((FOLDER / "adapter-rules.yaml").read_text())["rules"]["custom"]
VARIABLES = {"$__rate_interval": "1m", "$model": ".*"}


def list_dashboard_expressions() -> list[str]:
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    for name, value in VARIABLES.items():
        expressions = [expression.replace(name, value) for expression in expressions]
    return expressions


def list_alert_expressions() -> list[str]:
    """Without their thresholds: an alert that does not fire has no series."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [re.split(r" (?:>|==) ", rule["expr"])[0] for group in groups for rule in group["rules"]]


def list_adapter_expressions() -> list[str]:
    """Fill the templates as prometheus-adapter does for a pod."""
    filled = [rule["metricsQuery"].replace("<<.GroupBy>>", "pod") for rule in ADAPTER_RULES]
    return [expression.replace("<<.LabelMatchers>>", f'pod="{POD}"') for expression in filled]


@needs_prometheus
def test_every_expression_matches_series_of_a_running_server(prometheus: httpx.Client) -> None:
    expressions = [*list_dashboard_expressions(), *list_alert_expressions(), *list_adapter_expressions()]
    assert wait_for_series(prometheus, expressions) == []


def test_every_metric_that_a_manifest_names_is_in_a_scrape(server: Server) -> None:
    scraped = httpx.get(f"{server.url}/metrics").text
    made_by_the_adapter = {rule["name"]["as"] for rule in ADAPTER_RULES}
    for path in sorted(FOLDER.parent.rglob("*")):
        if path.is_file():
            for name in re.findall(r"\binfinity_[a-z_]+", path.read_text()):
                is_scraped = re.search(rf"^{name}(_bucket)?[{{ ]", scraped, re.MULTILINE)
                assert is_scraped or name in made_by_the_adapter or name == "infinity_emb", f"{path}: {name}"


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
