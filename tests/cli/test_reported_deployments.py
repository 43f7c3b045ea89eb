"""Users without a name or a home, and a log that nobody reads any more."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support.server_process import CLEAN_ENVIRON, COMMAND, DEADLINE_S, FAKE, Server

USER = 54_321  # of no name
# A container that runs as any user: no name, no rights on what root has written.
AS_NOBODY = """
import os, sys
os.setgroups([]); os.setgid({user}); os.setuid({user})
os.environ.pop("HOME", None)
{home}
from infinity_emb.cli import main
sys.exit(main())
"""
HOMES = {
    "no home": "",
    "a home that is not there": 'os.environ["HOME"] = "/nonexistent"',
    "a home of root's": 'os.environ["HOME"] = "/"',
}
OPTIONS = {
    "torch": [],
    "a disk cache": ["--vector-disk-cache"],
    "int8 vectors": ["--embedding-dtype", "int8"],
    "int8 weights": ["--dtype", "int8"],
}
CASES = [
    ("no home", "torch"),
    ("a home of root's", "a disk cache"),
    ("a home that is not there", "int8 vectors"),
    ("no home", "int8 weights"),
]
WITHOUT_HOMES = {
    name: value
    for name, value in CLEAN_ENVIRON.items()
    if name not in ("HF_HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR")
}


def can_become_another_user() -> bool:
    """Only root can, and the other user must be able to read this Python and its packages."""
    if not hasattr(os, "getuid") or os.getuid() != 0:
        return False
    program = AS_NOBODY.format(user=USER, home="").replace("sys.exit(main())", "")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    return done.returncode == 0


needs_root = pytest.mark.skipif(
    not can_become_another_user(), reason="no other user can run this Python, or we are not root"
)


def command_of(home: str) -> list[str]:
    return [sys.executable, "-c", AS_NOBODY.format(user=USER, home=HOMES[home])]


@pytest.fixture(scope="module")
def model() -> Iterator[Path]:
    """Where every user may read, which pytest's folders are not."""
    from tests.support.small_models import save_small_model

    folder = Path(tempfile.mkdtemp())
    try:
        path = save_small_model(folder, "bert")
        folder.chmod(0o755)
        for each in folder.rglob("*"):
            each.chmod(0o755 if each.is_dir() else 0o644)
        yield path
    finally:
        shutil.rmtree(folder)


@needs_root
@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize(("home", "options"), CASES)
def test_a_user_without_a_name_or_a_home_serves(home: str, options: str, model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    arguments = ["v2", "--host", "127.0.0.1", "--port", "0", "--no-model-warmup", *OPTIONS[options]]
    server = Server(*arguments, "--model-id", str(model), command=command_of(home))
    try:
        server.wait_until_listening()
        answer = server.embed("word12 word40 word300")
        again = server.embed("word12 word40 word300")
    finally:
        server.kill()
    assert (answer.status_code, again.status_code) == (200, 200), answer.text
    assert answer.json()["data"] == again.json()["data"]
    assert "Traceback" not in "".join(server.lines)
    if "int8" not in options:
        expected = SentenceTransformer(str(model), device="cpu").encode("word12 word40 word300")
        np.testing.assert_allclose(answer.json()["data"][0]["embedding"], expected, atol=2e-5)


@needs_root
@pytest.mark.model
@pytest.mark.slow
def test_an_engine_that_must_write_says_where_to_let_it(model: Path) -> None:
    done = subprocess.run(
        [*command_of("no home"), "v2", "--engine", "onnx", "--port", "0", "--model-id", str(model)],
        env=WITHOUT_HOMES,
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "INFINITY_HOME" in last
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_server_outlives_the_reader_of_its_log() -> None:
    """As in `infinity_emb v2 2>&1 | head -1`."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    process = subprocess.Popen(
        [*COMMAND, "v2", *FAKE[:-1], str(port), "--log-level", "debug"],
        env=CLEAN_ENVIRON,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        url = f"http://127.0.0.1:{port}"
        wait_until_healthy(url, process)
        for _ in range(3):
            assert httpx.post(f"{url}/embeddings", json={"input": "a"}).status_code == 200
        assert httpx.post(f"{url}/embeddings", json={"input": 3}).status_code == 422
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()


def wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        assert process.poll() is None, "the server ended"
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the server never listened")
