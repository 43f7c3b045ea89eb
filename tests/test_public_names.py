from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import infinity_emb
from infinity_emb import errors

SOURCE = Path(infinity_emb.__file__).read_text()
# Heavy, or of one part only; none may come with `import infinity_emb`.
FOREIGN = (
    "torch",
    "transformers",
    "sentence_transformers",
    "tokenizers",
    "huggingface_hub",
    "fastapi",
    "starlette",
    "pydantic",
    "uvicorn",
    "prometheus_client",
    "orjson",
    "tqdm",
    "PIL",
    "soundfile",
    "soxr",
    "httpx2",
    "asyncio",
)


def run_script(script: str) -> str:
    """What a fresh interpreter prints; it must print nothing on stderr."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(infinity_emb.__file__).parents[1],
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_the_public_names_are_these() -> None:
    exceptions = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert set(infinity_emb.__all__) == exceptions | {
        "MANAGER",
        "AsyncEmbeddingEngine",
        "AsyncEngineArray",
        "Classifier",
        "ClassifyOptions",
        "ClassifyReturnType",
        "Device",
        "Dtype",
        "EmbedOptions",
        "Embedder",
        "EmbeddingDtype",
        "Embeddings",
        "EngineArgs",
        "InferenceEngine",
        "ModelKind",
        "Normalization",
        "PoolingMethod",
        "RerankOptions",
        "RerankReturnType",
        "Reranker",
        "SparseVector",
        "SyncEngineArray",
        "TokenIdPolicy",
        "TokenIdsInput",
        "__version__",
        "create_server",
        "logger",
    }


@pytest.mark.parametrize("name", sorted(infinity_emb._MODULE_BY_NAME))
def test_a_public_name_is_the_one_of_its_module(name: str) -> None:
    home = importlib.import_module(infinity_emb._MODULE_BY_NAME[name])
    assert getattr(infinity_emb, name) is getattr(home, name)
    assert getattr(infinity_emb, name).__module__ == home.__name__
    assert inspect.getdoc(getattr(infinity_emb, name))


def test_every_public_name_has_a_home_and_can_be_imported_by_star() -> None:
    assert set(infinity_emb.__all__) == {*infinity_emb._MODULE_BY_NAME, "__version__", "logger"}
    names: dict[str, object] = {}
    exec("from infinity_emb import *", names)  # the statement itself is what is tested
    assert set(infinity_emb.__all__) <= names.keys()


def test_type_checkers_see_the_names_that_are_looked_up_at_run_time() -> None:
    imports = [node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert infinity_emb._MODULE_BY_NAME.items() <= seen.items()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'infinity_emb' has no attribute 'Engine'"):
        infinity_emb.Engine  # noqa: B018
    with pytest.raises(ImportError):
        exec("from infinity_emb import Engine")


# What importing does: the program below notes everything from outside while it runs.

WATCHED = f"""
import logging, os, sys, threading
import collections, contextlib, dataclasses, enum, functools, importlib, inspect, re, typing

class Watched(dict):
    def __getitem__(self, name): read.append(name); return super().__getitem__(name)
    def get(self, name, default=None): read.append(name); return super().get(name, default)
    def __contains__(self, name): read.append(name); return super().__contains__(name)
    def __iter__(self): read.append("all of it"); return super().__iter__()
    def items(self): read.append("all of it"); return super().items()
    def copy(self): read.append("all of it"); return super().copy()

read, events = [], []
os.environ = Watched(os.environ)
os.getenv = lambda name, default=None: os.environ.get(name, default)
before = (threading.active_count(), list(logging.root.handlers), logging.root.level, dict(sys.modules))
def note(event, _):
    if event.partition(".")[0] in ("socket", "subprocess"):
        events.append(event)
sys.addaudithook(note)

{{statement}}

after = (threading.active_count(), list(logging.root.handlers), logging.root.level)
assert not read, f"the environment was read: {{{{read}}}}"
assert not events, f"the network or a process was used: {{{{events}}}}"
assert after == before[:3], (after, before[:3])
loaded = sorted(name for name in {FOREIGN!r} if name in sys.modules and name not in before[3])
print(loaded, "numpy" in sys.modules)
"""


def test_importing_the_package_loads_nothing_and_does_nothing() -> None:
    assert run_script(WATCHED.format(statement="import infinity_emb")) == "[] False\n"


def test_making_options_needs_no_foreign_package_and_reads_no_environment() -> None:
    statement = "from infinity_emb import EngineArgs; EngineArgs(model_name_or_path='some/model')"
    assert run_script(WATCHED.format(statement=statement)) == "[] False\n"


@pytest.mark.parametrize("name", ["AsyncEmbeddingEngine", "AsyncEngineArray", "SyncEngineArray"])
def test_the_engines_need_numpy_alone_until_a_model_is_loaded(name: str) -> None:
    script = f"""
import sys
from infinity_emb import {name}
print(sorted(name for name in {FOREIGN!r} if name in sys.modules))
"""
    assert run_script(script) == "['asyncio']\n"


def test_the_fake_engine_needs_numpy_alone() -> None:
    """So everything around a model can be tested where torch is not installed."""
    script = f"""
import sys
for name in {FOREIGN!r}:
    if name != "asyncio":
        sys.modules[name] = None  # importing it is an ImportError
from infinity_emb import EngineArgs, SyncEngineArray
with SyncEngineArray([EngineArgs(model_name_or_path="debug", engine="debugengine")]) as array:
    print(array.embed(model=0, sentences=["aa"]).result()[1])
"""
    assert run_script(script) == "2\n"


def test_the_server_needs_no_model_library() -> None:
    script = """
import sys
from infinity_emb import EngineArgs, create_server
create_server(engine_args_list=[EngineArgs()])
heavy = {"torch", "transformers", "sentence_transformers", "tokenizers"}
print(sorted(heavy & sys.modules.keys()))
"""
    assert run_script(script) == "[]\n"


def test_a_server_in_python_names_the_extra_that_it_needs() -> None:
    script = """
import sys
sys.modules["fastapi"] = None
try:
    from infinity_emb import create_server
except ImportError as exc:
    print(exc)
"""
    assert run_script(script) == (
        "create_server needs a package that is not installed (fastapi); install it with:"
        " pip install 'infinity-emb[server]'\n"
    )


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert infinity_emb.__version__ == version("infinity-emb")
