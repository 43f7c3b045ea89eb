"""The split of a request's processor time by stages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.stages import OTHER, STAGES, WORKER, find_stage, split_by_stage

PACKAGE = Path(__file__).parents[2] / "infinity_emb"


def list_functions() -> Iterator[str]:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{path} {node.name}"


FUNCTIONS = list(list_functions())
# Alternatives of patterns that name the package's own files; the others are libraries.
OWN = [
    pattern
    for patterns in STAGES.values()
    for pattern in patterns.split("|")
    if re.match(r"infinity_emb|server|requests|responses|engine|backends|scheduling|middleware", pattern)
]


@pytest.mark.parametrize("pattern", [pattern for pattern in OWN if pattern.count("(") == pattern.count(")")])
def test_patterns_name_functions_that_exist(pattern: str) -> None:
    assert any(re.search(pattern, function) for function in FUNCTIONS)


def test_the_innermost_function_with_a_stage_decides() -> None:
    stack = [
        "/usr/lib/python3.11/uuid.py uuid4",
        f"{PACKAGE}/server/responses/json_vectors.py _describe_request",
        f"{PACKAGE}/server/router.py __call__",
        "/venv/uvicorn/server.py serve",
    ]
    assert find_stage(stack) == "response"
    assert find_stage(stack[2:]) == "routing and middleware"
    assert find_stage(stack[:1]) == OTHER


def test_stages_add_up_to_the_whole_time() -> None:
    router, fake = [f"{PACKAGE}/server/router.py app"], [f"{PACKAGE}/backends/fake.py encode"]
    record = {"main": [[router, 0.5], [fake, 0.25]], "engine_s": 0.125, "others_s": 0.25}
    by_stage = split_by_stage(record, 1000)
    assert sum(by_stage.values()) == pytest.approx(1000)
    assert by_stage["fake engine"] == pytest.approx(375)
    assert by_stage[WORKER] == pytest.approx(125)
