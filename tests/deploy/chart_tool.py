"""Render the Helm chart and check each manifest against its schema.

Runs in an environment with Helm's own code, Kubernetes' schemas and models of the custom resources:
reads values by case as JSON, and writes the manifests and the errors of each.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor
from helm_python import Chart, chart
from helm_python.errors import HelmValuesError

CUSTOM = {"ScaledObject": ScaledObject, "ServiceMonitor": ServiceMonitor}


def main(folder: str, versions: list[str]) -> None:
    report = chart.lint(folder, strict=True)
    assert not report["errors"], report
    cases = json.load(sys.stdin)
    with Chart.load(folder) as loaded:
        results = {name: try_case(loaded, values, versions) for name, values in cases.items()}
    json.dump(results, sys.stdout)


def try_case(loaded: Chart, values: dict[str, Any], versions: list[str]) -> dict[str, Any]:
    """Return the manifests, or why the values are refused. Raises what a schema says of a manifest."""
    manifests: list[dict[str, Any]] = []
    try:
        loaded.validate_schema(values)
        manifests += parse(loaded.render(values, name="demo", namespace="search"))
        for manifest in manifests:
            for version in versions:
                check(manifest, version)
    except HelmValuesError as exc:
        return {"manifests": manifests, "error": f"{type(exc).__name__}: {exc}"}
    return {"manifests": manifests, "error": ""}


def parse(rendered: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yield the manifests of all files but the notes."""
    for path, text in rendered.items():
        if path.endswith(".yaml"):
            yield from filter(None, yaml.safe_load_all(text))


def check(manifest: dict[str, Any], kubernetes: str) -> None:
    """Raise where a field is missing, unknown or of another type."""
    if model := CUSTOM.get(manifest["kind"]):
        parsed = model.model_validate(manifest)
        # The models drop what they do not know.
        known = json.loads(parsed.model_dump_json(by_alias=True, exclude_unset=True))
        assert known == manifest, f"unknown fields: {known}\n{manifest}"
    else:
        kubernetes_validate.validate(manifest, kubernetes, strict=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
