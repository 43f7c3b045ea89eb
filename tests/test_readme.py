"""What the README shows works as pasted, against the server that it starts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server_process import CLEAN_ENVIRON, DEADLINE_S, Server, StartServer

pytestmark = pytest.mark.model

README = (Path(__file__).parents[1] / "README.md").read_text()
DEFAULT_URL = "http://localhost:7997"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def server(serve: StartServer) -> Server:
    return serve("v2", "--host", "127.0.0.1", "--port", "0", "--no-model-warmup")


def run(command: list[str], text: str) -> str:
    done = subprocess.run(
        command,
        input=text,
        capture_output=True,
        text=True,
        timeout=4 * DEADLINE_S,
        check=False,
        env=CLEAN_ENVIRON,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_block_works_as_pasted(server: Server) -> None:
    curl, openai, engine = [*blocks("sh"), *blocks("python")]
    assert DEFAULT_URL in curl
    assert DEFAULT_URL in openai
    answer = run(["bash", "-s"], curl.replace(DEFAULT_URL, server.url).replace("curl", "curl -sS"))
    assert '"index":1' in answer
    assert run([sys.executable, "-"], openai.replace(DEFAULT_URL, server.url)).split() == ["384"]
    assert run([sys.executable, "-"], engine).split() == ["(384,)", "13"]


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len(README.splitlines()) <= 120
