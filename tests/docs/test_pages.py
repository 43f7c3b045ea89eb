"""Every code block of the pages is run, or checked as far as it can be without a hub, a GPU and Docker.

A `json` or `text` block is the output of the block before it; `...` in it stands for anything.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import pytest
import yaml

from infinity_emb.backends.torch import load
from infinity_emb.backends.warmup import DEFAULT_BATCH_TOKENS
from scripts.site.pages import Block, list_blocks, list_pages, read_page
from tests.docs.commands import check_script, check_server_command, check_variables
from tests.support.server_process import CLEAN_ENVIRON, DEADLINE_S

pytestmark = pytest.mark.model

DEFAULT_URL = "http://localhost:7997"
# Pages whose blocks of these languages another test runs, with the models or clients that they need.
TESTED_ELSEWHERE = {
    "docs/requests.md": {"sh"},  # tests/docs/test_requests_guide.py
    "docs/clients.md": {"python", "js"},  # tests/clients
    "docs/guides/ray.md": {"python", "yaml"},  # tests/ray/test_guide.py
}
# What stands in for models that would be downloaded.
STAND_INS = {'"BAAI/bge-reranker-base"': '"debug?kind=reranker", "engine": "debugengine"'}
OUTPUTS = ("json", "text")
ELLIPSIS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def list_cases() -> Iterator[Any]:
    """Yield each block that is no output, with the output that follows it, if one does."""
    for page in list_pages():
        blocks = list_blocks(read_page(page))
        for block, following in zip(blocks, [*blocks[1:], None], strict=False):
            if block.language in OUTPUTS or block.language in TESTED_ELSEWHERE.get(page, ()):
                continue
            is_output = following is not None and following.language in OUTPUTS
            yield pytest.param(block, following if is_output else None, id=f"{page}:{block.line}")


@pytest.fixture(autouse=True)
def no_warmup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of the pages need not find their best batch size."""
    monkeypatch.setattr(load, "find_batch_tokens", lambda *_, **__: DEFAULT_BATCH_TOKENS["cpu"])


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("block", "output"), list(list_cases()))
def test_a_block_works_as_pasted(block: Block, output: Block | None, request: pytest.FixtureRequest) -> None:
    text = block.text
    url = request.getfixturevalue("plain_url") if DEFAULT_URL in text or block.language in NEED_SERVER else ""
    for name, stand_in in STAND_INS.items():
        text = text.replace(name, stand_in)
    printed = RUNNERS[block.language](text.replace(DEFAULT_URL, url), url)
    if output is not None and printed is not None:
        check_output(output, printed)


def check_output(expected: Block, printed: str) -> None:
    want, got = expected.text, printed
    if expected.language == "json":
        want, got = (re.sub(r"\s+", "", text) + "\n" for text in (want, got))
    checker = doctest.OutputChecker()
    assert checker.check_output(want, got, ELLIPSIS), f"expected:\n{want}\nprinted:\n{got}"


def run_shell(text: str, url: str) -> str | None:
    """Run a script of curl, and check one of other commands."""
    if "curl " not in text:
        check_script(text)
        return None
    done = subprocess.run(
        ["bash", "-es"],
        input=text.replace("curl ", "curl -sS --fail-with-body "),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        env=CLEAN_ENVIRON,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_indented(text: str, _: str) -> None:
    """Check commands, between which output may stand."""
    check_script(text, may_hold_output=True)


def run_python(text: str, _: str) -> str:
    """Run a program in this process, where what it imports is imported already."""
    printed, names = io.StringIO(), {"__name__": "__main__"}
    with contextlib.redirect_stdout(printed):
        exec(compile(text, "<page>", "exec"), names)
    check_comments(text, names)
    return printed.getvalue()


def check_comments(text: str, names: Mapping[str, Any]) -> None:
    """Check comments that tell the shape and dtype of what a line assigns."""
    for name, shape, dtype in re.findall(r"^ *(\w+) = .*  # (\([\d, ]+\)) (\w+)", text, re.MULTILINE):
        assert (str(names[name].shape), str(names[name].dtype)) == (shape, dtype), name


def check_yaml(text: str, url: str) -> None:
    """Check what manifests tell the server: its command line, and the paths of probes."""
    for document in yaml.safe_load_all(text):
        for node in iterate_mappings(document):
            for key in ("args", "command"):
                if key in node:
                    check_server_command([str(word) for word in node[key]])
            if "httpGet" in node:
                assert httpx.get(f"{url}{node['httpGet']['path']}").status_code == 200


def iterate_mappings(node: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(node, Mapping):
        yield node
    children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    for child in children:
        yield from iterate_mappings(child)


def check_promql(text: str, url: str) -> None:
    """Check that every metric exists."""
    found = httpx.get(f"{url}/metrics").text
    for name in re.findall(r"infinity_\w+", text):
        assert re.search(rf"^{name}[{{ ]", found, re.MULTILINE), name


def check_dockerfile(text: str, _: str) -> None:
    """Check commands of the server, and variables that are set."""
    for line in text.splitlines():
        instruction, _, rest = line.partition(" ")
        if instruction == "RUN":
            check_script(rest)
        elif instruction == "ENV":
            check_variables(pair.partition("=")[0] for pair in rest.split())


NEED_SERVER = ("yaml", "promql")
RUNNERS: Mapping[str, Callable[[str, str], str | None]] = {
    "": check_indented,
    "sh": run_shell,
    "python": run_python,
    "yaml": check_yaml,
    "promql": check_promql,
    "dockerfile": check_dockerfile,
}


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len(read_page("README.md").splitlines()) <= 120
