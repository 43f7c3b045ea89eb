"""No engine looks up a host or writes a file that is not ours: in an empty home, with a local model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.small_models.embedders import save_small_model

pytestmark = [pytest.mark.model, pytest.mark.slow]

_LIBRARIES = {"torch": "torch", "onnx": "onnxruntime", "openvino": "openvino", "ctranslate2": "ctranslate2"}
# Native code asks libc; a library that is loaded before it answers instead, and takes notes.
_SPY = """
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>

int getaddrinfo(const char *host, const char *port, const struct addrinfo *hints, struct addrinfo **found) {
    FILE *notes = fopen(getenv("LOOKUPS"), "a");
    fprintf(notes, "%s\\n", host ? host : "");
    fclose(notes);
    return EAI_FAIL;
}
"""
_PROGRAM = """
import asyncio, socket, sys, time
from infinity_emb import AsyncEmbeddingEngine, EngineArgs

async def main():
    async with AsyncEmbeddingEngine.from_args(
        EngineArgs(model_name_or_path=sys.argv[1], engine=sys.argv[2], device="cpu", model_warmup=False)
    ) as engine:
        await engine.embed(["a"])
        await asyncio.sleep(2)  # time for threads that report in the background

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("model"), "bert")


@pytest.fixture(scope="module")
def spy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("spy")
    (folder / "spy.c").write_text(_SPY)
    library = folder / "spy.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "spy.c"], check=True)
    return library


def run_program(home: Path, spy: Path, *arguments: str) -> list[str]:
    """Return the hosts that were looked up."""
    lookups = home.with_name("lookups")
    lookups.write_text("")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
    environment |= {
        "HOME": str(home),
        "INFINITY_HOME": str(home.with_name("ours")),
        "TMPDIR": str(home.parent),
        "LD_PRELOAD": str(spy),
        "LOOKUPS": str(lookups),
    }
    subprocess.run([sys.executable, "-c", *arguments], env=environment, check=True, capture_output=True)
    return lookups.read_text().splitlines()


@pytest.mark.parametrize("engine", list(_LIBRARIES))
def test_no_engine_reports_to_anybody(engine: str, model: Path, spy: Path, tmp_path: Path) -> None:
    """ONNX Runtime wrote an id of the device into the home and looked up a host of its maker."""
    pytest.importorskip(_LIBRARIES[engine])
    home = tmp_path / "home"
    home.mkdir()
    assert run_program(home, spy, _PROGRAM, str(model), engine) == []
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_a_look_up_would_be_seen(spy: Path, tmp_path: Path) -> None:
    program = (
        "import contextlib, socket\nwith contextlib.suppress(OSError): socket.getaddrinfo('example.org', 1)"
    )
    (tmp_path / "home").mkdir()
    assert run_program(tmp_path / "home", spy, program) == ["example.org"]
