"""The Helm chart, rendered by Helm's own code: schemas, and what a running server says to it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.environments import python_of
from tests.deploy.prometheus import needs_prometheus, wait_for_series
from tests.deploy.test_monitoring import ADAPTER_RULES
from tests.docs.commands import check_server_command
from tests.support.server_process import DEADLINE_S, Server

pytestmark = pytest.mark.network

HERE = Path(__file__).parent
CHART = HERE.parents[1] / "deploy" / "helm" / "infinity-emb"
KUBERNETES = ("1.30", "1.36")  # the oldest that the chart accepts, and a recent one
SECRETS = {"apiKeys": {"secretName": "keys"}, "hfToken": {"secretName": "hub"}}
CASES: Mapping[str, Mapping[str, Any]] = {
    "defaults": {},
    "hpa": {"autoscaling": {"type": "hpa"}},
    "keda": {"autoscaling": {"type": "keda"}},
    "secrets": {"secrets": SECRETS, "env": [{"name": "HF_HUB_OFFLINE", "value": "1"}]},
    "claim": {"persistence": {"size": "50Gi", "storageClass": "shared"}},
    "existing claim": {"persistence": {"existingClaim": "models"}},
    "monitor": {"metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}}},
    "models": {
        "models": [{"id": "BAAI/bge-small-en-v1.5", "name": "bge"}, {"id": "BAAI/bge-reranker-base"}],
        "extraArgs": ["--dtype", "float32"],
        "resources": {"limits": {"nvidia.com/gpu": 1}},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "imagePullSecrets": [{"name": "registry"}],
        "podAnnotations": {"example.org/team": "search"},
        "preStopSeconds": 0,
    },
}


REFUSED: Mapping[str, Mapping[str, Any]] = {
    "no model": {"models": []},
    "no such autoscaler": {"autoscaling": {"type": "vpa"}},
    "a ratio in percent": {"autoscaling": {"targetBusyRatio": 70}},
}


@cache
def render_all() -> Mapping[str, Any]:
    """Return manifests and error of each case, from one process: Helm's library and the schemas are large."""
    command = [str(python_of("deployment")), str(HERE / "chart_tool.py"), str(CHART), *KUBERNETES]
    cases = json.dumps({**CASES, **REFUSED})
    done = subprocess.run(command, input=cases, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    results: Mapping[str, Any] = json.loads(done.stdout)
    return results


def render(case: str) -> Mapping[str, Any]:
    """Return the manifests by kind. Raises AssertionError for what a schema refuses."""
    result = render_all()[case]
    assert result["error"] == ""
    return {manifest["kind"]: manifest for manifest in result["manifests"]}


def find_container(case: str) -> Mapping[str, Any]:
    [container] = render(case)["Deployment"]["spec"]["template"]["spec"]["containers"]
    found: Mapping[str, Any] = container
    return found


@pytest.mark.parametrize("case", CASES)
def test_manifests_follow_the_schemas(case: str) -> None:
    assert {"Deployment", "Service", "PodDisruptionBudget"} <= set(render(case))


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_cannot_work_are_refused(case: str) -> None:
    assert render_all()[case]["error"].startswith("HelmValuesError")


@pytest.mark.parametrize("case", CASES)
def test_the_server_accepts_the_arguments(case: str) -> None:
    check_server_command([str(word) for word in find_container(case)["args"]])


def test_probes_ask_paths_that_answer(server: Server) -> None:
    container = find_container("defaults")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert httpx.get(f"{server.url}{container[probe]['httpGet']['path']}").status_code == 200
    monitor = render("monitor")["ServiceMonitor"]["spec"]["endpoints"][0]
    assert httpx.get(f"{server.url}{monitor['path']}").status_code == 200


def test_a_pod_may_take_as_long_as_its_server_to_stop() -> None:
    pod = render("defaults")["Deployment"]["spec"]["template"]["spec"]
    arguments = find_container("defaults")["args"]
    shutdown_s = int(arguments[arguments.index("--shutdown-timeout-s") + 1])
    pre_stop_s = int(find_container("defaults")["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pre_stop_s + shutdown_s


def test_pods_run_without_privileges() -> None:
    pod = render("defaults")["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 10001
    assert not pod["automountServiceAccountToken"]
    security = find_container("defaults")["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert "limits" in find_container("defaults")["resources"]


def test_secrets_are_files_and_in_no_argument_or_variable() -> None:
    container = find_container("secrets")
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    paths = [container["args"][container["args"].index("--api-key-file") + 1]]
    paths += [each["value"] for each in container["env"] if each["name"] == "HF_TOKEN_PATH"]
    assert len(paths) == 2
    assert all(any(path.startswith(f"{mount}/") for mount in mounts) for path in paths)
    assert "valueFrom" not in str(container["env"])


def test_selectors_match_the_pods() -> None:
    manifests = {**render("defaults"), **render("monitor")}
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        manifests["Deployment"]["spec"]["selector"]["matchLabels"],
        manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        manifests["Service"]["spec"]["selector"],
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    service_labels = manifests["Service"]["metadata"]["labels"]
    monitored = manifests["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= service_labels.items()


@pytest.mark.parametrize("case", ["hpa", "keda"])
def test_an_autoscaler_owns_the_number_of_replicas(case: str) -> None:
    assert "replicas" not in render(case)["Deployment"]["spec"]
    kind = {"hpa": "HorizontalPodAutoscaler", "keda": "ScaledObject"}[case]
    target = render(case)[kind]["spec"]["scaleTargetRef"]["name"]
    assert target == render(case)["Deployment"]["metadata"]["name"]


def test_the_adapter_makes_each_metric_of_the_hpa() -> None:
    metrics = render("hpa")["HorizontalPodAutoscaler"]["spec"]["metrics"]
    named = {metric["pods"]["metric"]["name"] for metric in metrics}
    assert named == {rule["name"]["as"] for rule in ADAPTER_RULES}


@needs_prometheus
def test_each_query_of_keda_matches_series_of_a_running_server(prometheus: httpx.Client) -> None:
    triggers: Sequence[Any] = render("keda")["ScaledObject"]["spec"]["triggers"]
    assert len(triggers) == 2
    assert wait_for_series(prometheus, [each["metadata"]["query"] for each in triggers]) == []


def test_hadolint_accepts_every_dockerfile() -> None:
    hadolint = python_of("deployment").with_name("hadolint")
    root = HERE.parents[1]
    paths = [*sorted(root.glob("Dockerfile*")), root / "deploy" / "ray" / "Dockerfile"]
    assert len(paths) == 4
    done = subprocess.run([hadolint, *paths], capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stdout
