"""The files of deploy/ray, next to the schemas of Ray Serve and of KubeRay."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve._private.build_app import build_app
from ray.serve.schema import ServeDeploySchema

from infinity_emb.ray_serve import build

pytestmark = pytest.mark.filterwarnings("default")

FOLDER = Path(__file__).parents[2] / "deploy" / "ray"
RAY_SERVICE = yaml.safe_load((FOLDER / "rayservice.yaml").read_text())
CONFIGS = {
    "serve.yaml": yaml.safe_load((FOLDER / "serve.yaml").read_text()),
    "rayservice.yaml": yaml.safe_load(RAY_SERVICE["spec"]["serveConfigV2"]),
}
# Members of KubeRay's RayService (ray.io/v1) that are used here: those that must be there, and others.
# Source: ray-operator/apis/ray/v1/{rayservice,raycluster}_types.go of https://github.com/ray-project/kuberay
GROUP: tuple[Mapping[str, type], Mapping[str, type]] = ({"rayStartParams": dict, "template": dict}, {})
MEMBERS: Mapping[str, tuple[Mapping[str, type], Mapping[str, type]]] = {
    "RayService": ({"apiVersion": str, "kind": str, "metadata": dict, "spec": dict}, {}),
    "spec": ({}, {"serveConfigV2": str, "rayClusterConfig": dict}),
    "rayClusterConfig": (
        {"headGroupSpec": dict},
        {"workerGroupSpecs": list, "rayVersion": str, "enableInTreeAutoscaling": bool, "authOptions": dict},
    ),
    "headGroupSpec": GROUP,
    "workerGroupSpec": (
        {**GROUP[0], "groupName": str, "minReplicas": int, "maxReplicas": int},
        {"replicas": int},
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_schema_of_serve_accepts_it(config: Mapping[str, Any]) -> None:
    ServeDeploySchema.model_validate(config)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_each_deployment_that_is_configured_exists(
    config: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    [application] = config["applications"]
    monkeypatch.setattr("infinity_emb.ray_serve.options.read_server_config", lambda _: None)  # no key file
    deployments = build_app(build(application["args"]), name="infinity").deployments
    assert {each.name for each in deployments} == {each["name"] for each in application["deployments"]}


def test_serve_builds_the_application(tmp_path: Path) -> None:
    """What `serve build` writes has our defaults, and the schema accepts it."""
    [application] = CONFIGS["serve.yaml"]["applications"]
    (tmp_path / "application.py").write_text(
        f"from infinity_emb.ray_serve import build\napp = build({application['args']!r})\n"
    )
    serve = Path(sys.executable).with_name("serve")
    command = [
        str(serve),
        "build",
        "application:app",
        "--app-dir",
        str(tmp_path),
        "-o",
        str(tmp_path / "out.yaml"),
    ]
    subprocess.run(command, check=True, timeout=200, capture_output=True)
    built = ServeDeploySchema.model_validate(yaml.safe_load((tmp_path / "out.yaml").read_text()))
    names = [each.name for each in built.applications[0].deployments]
    assert sorted(names) == ["Router", "bge", "rerank"]


def check_members(kind: str, node: Mapping[str, Any]) -> None:
    required, optional = MEMBERS[kind]
    assert required.keys() <= node.keys() <= required.keys() | optional.keys(), kind
    for name, value in node.items():
        assert type(value) is {**required, **optional}[name], (kind, name)


def test_the_manifest_has_the_members_of_a_rayservice() -> None:
    check_members("RayService", RAY_SERVICE)
    check_members("spec", RAY_SERVICE["spec"])
    cluster = RAY_SERVICE["spec"]["rayClusterConfig"]
    check_members("rayClusterConfig", cluster)
    check_members("headGroupSpec", cluster["headGroupSpec"])
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in cluster["workerGroupSpecs"]:
        check_members("workerGroupSpec", group)
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        [container] = group["template"]["spec"]["containers"]
        mounted = {each["name"] for each in container.get("volumeMounts", [])}
        assert mounted == {each["name"] for each in group["template"]["spec"].get("volumes", [])}


def test_the_manifest_serves_what_the_file_for_one_machine_does() -> None:
    first, second = (config["applications"][0] for config in CONFIGS.values())
    assert first["args"]["models"] == second["args"]["models"]
    assert first["import_path"] == second["import_path"]
