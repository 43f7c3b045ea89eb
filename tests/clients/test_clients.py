"""Clients that people use, each in an environment of its own, against a live server and its plain answers.

`make test` runs those that are installed in seconds, `make test-clients` all of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.environments import RegistryTooSlow
from tests.clients.clients import CLIENTS, Client
from tests.clients.conftest import MINILM, MODELS, Asked, Expected, options_of, serving
from tests.clients.environments import (
    ENVIRONMENTS,
    HERE,
    PINS,
    node_folder,
    python_of,
    tiktoken_folder,
)
from tests.support.server_process import DEADLINE_S

PAGE = (HERE.parents[1] / "docs" / "clients.md").read_text(encoding="utf-8")
DEFAULT_URL = "http://localhost:7997"
NEEDED_PYTHON = (3, 11)  # the lists of packages are of it
TOLERANCE = 1e-6  # the engine may have batched the texts otherwise
LIVE = (pytest.mark.model, pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(900))


def in_environments_of(clients: Sequence[Client]) -> pytest.MarkDecorator:
    """Marks a test that runs in each environment of each client."""
    runs = [
        pytest.param(client, name, id=f"{client.title} in {name}", marks=LIVE)
        for client in clients
        for name in client.environments
    ]
    return pytest.mark.parametrize(("client", "environment"), runs)


@pytest.fixture
def run_there(client: Client, environment: str, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """Runs `script`, or what stands in `text`, in the client's environment; returns what it prints."""
    if client.is_heavy and not request.config.getoption("all_clients", default=False):
        pytest.skip("many packages: make test-clients")
    if environment == "node" and shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    if sys.version_info < NEEDED_PYTHON:
        pytest.skip("the lists of packages are for Python 3.11 and newer")

    try:
        made = node_folder() if environment == "node" else python_of(environment)
    except RegistryTooSlow as exc:
        pytest.skip(str(exc))

    def run_there(*script: str, text: str = "", **environ: str) -> str:
        if environment == "node":
            folder = made  # where Node looks for packages, also for a script on stdin
            command = ["node", *(script or ["--input-type=module", "-"])]
        else:
            folder = tmp_path
            command = [str(made), *([str(HERE / each) for each in script] or ["-"])]
        done = subprocess.run(
            command,
            cwd=folder,
            input=text,
            capture_output=True,
            text=True,
            timeout=4 * DEADLINE_S,
            check=False,
            env=environ
            | {
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "TIKTOKEN_CACHE_DIR": str(tiktoken_folder()),
            },
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run_there


@in_environments_of(CLIENTS)
def test_a_client_sees_what_plain_http_answers(
    client: Client, run_there: Any, asked: Asked, expected: Expected
) -> None:
    found = answers_of(client.script, run_there, asked)
    check_vectors(found.pop("vectors"), expected)
    for way, pairs in found.pop("rankings", {}).items():
        check_ranking(pairs, expected, way)
    for way, labels in found.pop("labels", {}).items():
        check_labels(labels, expected, way)
    if similarities := found.pop("similarities", None):
        np.testing.assert_allclose(similarities, expected.similarities, rtol=0, atol=TOLERANCE)
    check_errors(found.pop("errors"), client.errors)
    assert not found, "nothing is told that is not checked"


@in_environments_of([each for each in CLIENTS if each.title == "langchain"])
def test_the_token_ids_of_openai_are_read_where_the_server_is_told_to(
    run_there: Any, asked: Asked, expected: Expected
) -> None:
    options = ["--no-model-warmup", *options_of("minilm", *MINILM), "--token-ids", "cl100k"]
    with serving(*options, TIKTOKEN_CACHE_DIR=str(tiktoken_folder())) as url:
        found = answers_of("with_token_ids.py", run_there, dataclasses.replace(asked, url=url))
    check_vectors(found["vectors"], expected)


def answers_of(script: str, run_there: Any, asked: Asked) -> dict[str, Any]:
    """What the script prints last."""
    printed = run_there(f"deeper/{script}", QUESTION=json.dumps(dataclasses.asdict(asked)))
    answers: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return answers


def check_vectors(found: Mapping[str, Any], expected: Expected) -> None:
    """Of every way that the client has, all texts in their order."""
    assert found
    for way, rows in found.items():
        np.testing.assert_allclose(np.float32(rows), expected.vectors, rtol=0, atol=TOLERANCE, err_msg=way)


def check_ranking(pairs: Sequence[tuple[int, float]], expected: Expected, way: str) -> None:
    """All texts, the best first, each with the score of its own index."""
    indices = [index for index, _ in pairs]
    assert indices == np.argsort(-expected.scores).tolist(), way
    np.testing.assert_allclose([score for _, score in pairs], expected.scores[indices], err_msg=way)


def check_labels(labels: Sequence[Sequence[tuple[str, float]]], expected: Expected, way: str) -> None:
    """Of the first texts, or of all; some clients show the best label alone."""
    for seen, all_labels in zip(labels, expected.labels, strict=False):
        assert [tuple(each) for each in seen] == all_labels[: len(seen)], way


def check_errors(found: Mapping[str, Sequence[str]], expected: Mapping[str, tuple[str, str]]) -> None:
    """The class by name, and what the user must be told."""
    assert {case: seen[0] for case, seen in found.items()} == {
        case: name for case, (name, _) in expected.items()
    }
    for case, (_, words) in expected.items():
        assert words in found[case][1], case


@in_environments_of(CLIENTS)
def test_the_example_prints_what_its_comments_say(client: Client, run_there: Any, asked: Asked) -> None:
    block = example_of(client)
    assert DEFAULT_URL in block
    shown = re.findall(r"^.*(?:print|console\.log)\(.*\);?  (?:#|//) (.*)$", block, re.MULTILINE)
    assert shown
    assert run_there(text=block.replace(DEFAULT_URL, asked.url)).splitlines() == shown


def sections() -> dict[str, str]:
    """Heading → text."""
    parts = re.split(r"^## (.+)\n", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def example_of(client: Client) -> str:
    (block,) = re.findall(r"```(?:python|js)\n(.*?)```", sections()[client.title], re.DOTALL)
    return str(block)


def test_every_client_has_a_section_and_every_section_a_test() -> None:
    others = {"Names, lengths and limits", "Differs on purpose", "Tests of other projects"}
    assert [client.title for client in CLIENTS] == [title for title in sections() if title not in others]


def test_the_table_has_the_versions_that_are_tested() -> None:
    """A row's second cell names each package as it is installed, `package==version`."""
    rows = dict(re.findall(r"^\| \[(.+?)\]\(.+?\) \| (.+?) \|", PAGE, re.MULTILINE))
    assert list(rows) == [client.title for client in CLIENTS]
    packages = json.loads((PINS / "package.json").read_text())["dependencies"]
    for client in CLIENTS:
        for version in re.findall(r"\d+\.\d+\.\d+", rows[client.title]):
            installed = [
                ask for name in client.environments if name != "node" for ask in ENVIRONMENTS[name].asked
            ]
            installed += packages.values() if "node" in client.environments else []
            assert any(each.endswith(version) for each in installed), (client.title, version)


def test_every_list_of_packages_has_what_is_asked_for() -> None:
    assert {path.stem for path in PINS.glob("*.txt")} == set(ENVIRONMENTS)
    for name, environment in ENVIRONMENTS.items():
        listed = {normalised(line) for line in (PINS / f"{name}.txt").read_text().splitlines()}
        is_of_the_tests = environment.is_shared and "openai==3.54.0"
        assert {normalised(each) for each in environment.asked} - {is_of_the_tests} <= listed


def normalised(requirement: str) -> str:
    """As the packaging guide compares names."""
    return (
        re.sub(r"[-_.]+", "-", requirement.partition("==")[0]).lower() + "==" + requirement.partition("==")[2]
    )


def test_the_page_starts_the_models_that_are_tested() -> None:
    (command,) = re.findall(r"^    (infinity_emb v2 .*?)\n\n", PAGE, re.DOTALL | re.MULTILINE)
    words = itertools.pairwise(shlex.split(command))
    named = [name for flag, name in words if flag == "--served-model-name"]
    assert named == list(MODELS)
