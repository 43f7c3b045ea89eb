"""Run what examples/ shows: in process, or against a server.

Those with packages that the tests do not need run in an environment of their own, by `make test-examples`.
"""

from __future__ import annotations

import ast
import csv
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from scripts.site.pages import REPOSITORY, read_page
from tests.clients.environments import python_of
from tests.docs.commands import check_script
from tests.support.server_process import CLEAN_ENVIRON, DEADLINE_S, serving
from tests.support.small_models import save_small_classifier
from tests.support.small_models.media import random_images, save_clip

EXAMPLES = REPOSITORY / "examples"
OFFLINE = {
    "async_engine.py": ["3 vectors of 384 dimensions", "Munich is a city in Bavaria."],
    "sync_array.py": ["first: 384 dimensions", "second: 64 dimensions"],
}
WITH_SERVER = {
    "openai_client.py": ["Paris is a city.  384 dimensions", "tokens, model "],
    "rerank_httpx.py": ["[1] Munich is a city in Bavaria."],
    "rerank_curl.sh": ['"index":1'],
}
WITH_OTHER_MODELS = {"classify_csv.py", "image_search.py", "rerank_for_rag.py"}
# Example → its environment, and what it prints.
WITH_PACKAGES = {
    "semantic_search_qdrant.py": ("qdrant", ["The Isar flows through Munich.", "Bread is made from flour"]),
    "langchain_search.py": ("langchain", ["The river Isar flows through Munich."]),
    "llama_index_search.py": ("llama-index", ["The river Isar flows through Munich."]),
    "evaluate_with_mteb.py": ("mteb", ["served", "sentence-transformers"]),
}


def run(name: str, *arguments: str, python: str = sys.executable, **environ: str) -> str:
    command = [python] if name.endswith(".py") else ["bash"]
    done = subprocess.run(
        [*command, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=4 * DEADLINE_S,
        check=False,
        env=CLEAN_ENVIRON | environ,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_printed(printed: str, parts: Sequence[str]) -> None:
    for part in parts:
        assert part in printed


@pytest.mark.model
@pytest.mark.parametrize("name", OFFLINE)
def test_an_example_runs_offline(name: str) -> None:
    check_printed(run(name), OFFLINE[name])


@pytest.mark.model
def test_the_other_examples_run_against_a_server(plain_url: str) -> None:
    for name, parts in WITH_SERVER.items():
        check_printed(run(name, plain_url), parts)


@pytest.mark.model
def test_a_program_for_openai_runs_unchanged(plain_url: str) -> None:
    printed = run("openai_unchanged.py", OPENAI_BASE_URL=f"{plain_url}/v1", OPENAI_API_KEY="unused")
    assert printed == "Choose 'Forgot password' on the sign-in page.\n"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the kinds of models that the other examples need, small ones where that is enough."""
    folder = tmp_path_factory.mktemp("models")
    models = {
        "embedder": ("sentence-transformers/all-MiniLM-L6-v2", "torch"),
        "reranker": ("debug?kind=reranker", "debugengine"),
        "classifier": (str(save_small_classifier(folder / "classifier", "bert", num_labels=3)), "torch"),
        "clip": (str(save_clip(folder / "clip")), "torch"),
    }
    options = ["--no-model-warmup"]
    for name, (path, engine) in models.items():
        options += ["--model-id", path, "--served-model-name", name, "--engine", engine]
    with serving(*options) as url:
        yield url


@pytest.mark.model
def test_a_prompt_holds_the_passages_that_the_reranker_prefers(url: str) -> None:
    """The stand-in prefers long ones; of the four nearest to the question, these are the longest."""
    printed = run("rerank_for_rag.py", url)
    assert "[1] The Würm joins the Amper" in printed
    assert "[2] The Isar flows through Munich" in printed
    assert "cat" not in printed


@pytest.mark.model
def test_every_row_of_a_file_gets_a_label(url: str, tmp_path: Path) -> None:
    texts = [f"This is review {number}." for number in range(300)]
    with open(tmp_path / "reviews.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "text"], *enumerate(texts)])
    run("classify_csv.py", str(tmp_path / "reviews.csv"), str(tmp_path / "labelled.csv"), "--url", url)
    with open(tmp_path / "labelled.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == texts
    assert {row["label"] for row in rows} <= {"LABEL_0", "LABEL_1", "LABEL_2"}
    assert all(1 / 3 <= float(row["score"]) <= 1 for row in rows)


@pytest.mark.model
def test_pictures_are_ranked_by_a_description(url: str, tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number}.png") for number in range(18)]
    for path, image in zip(paths, random_images(len(paths)), strict=True):
        image.save(path)
    printed = run("image_search.py", "a dog", *paths, "--model", "clip", "--url", url)
    scores, names = zip(*(line.split() for line in printed.splitlines()), strict=True)
    assert sorted(names) == sorted(paths)
    assert [float(score) for score in scores] == sorted(map(float, scores), reverse=True)


@pytest.mark.model
@pytest.mark.network
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", WITH_PACKAGES)
def test_an_example_with_packages_of_its_own_runs(
    name: str, plain_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("all_examples", default=False):
        pytest.skip("packages of its own: make test-examples")
    environment, parts = WITH_PACKAGES[name]
    environ = {"HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    printed = run(name, plain_url, python=str(python_of(environment)), **environ)
    check_printed(printed, parts)
    if name == "evaluate_with_mteb.py":
        served, reference = (float(line.split()[-1]) for line in printed.splitlines()[-2:])
        assert served == pytest.approx(reference, abs=1e-4)


def test_every_example_is_tested_short_and_begins_with_commands_that_exist() -> None:
    examples = {path.name: path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    tested = {*OFFLINE, *WITH_SERVER, *WITH_OTHER_MODELS, *WITH_PACKAGES, "openai_unchanged.py"}
    assert examples.keys() == tested
    for name, path in examples.items():
        source = path.read_text(encoding="utf-8")
        assert len(source.splitlines()) <= 75, name
        if path.suffix == ".py":
            commands = re.findall(r"^(?: {4}.+\n)+", ast.get_docstring(ast.parse(source)) or "", re.MULTILINE)
            check_script(re.sub(r"&$", "", textwrap.dedent("".join(commands)), flags=re.MULTILINE))


def test_the_page_of_examples_lists_each() -> None:
    page = read_page("docs/guides/examples.md")
    for path in EXAMPLES.iterdir():
        assert f"(../../examples/{path.name})" in page or path.name.startswith(("_", ".")), path.name
