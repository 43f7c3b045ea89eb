from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from infinity_emb.backends import registry
from infinity_emb.backends.fake import FakeBackend
from infinity_emb.backends.registry import load_model
from infinity_emb.config import EngineArgs
from infinity_emb.errors import StartupError
from infinity_emb.primitives import InferenceEngine


def args_for(engine: str) -> EngineArgs:
    return EngineArgs(model_name_or_path="debug", engine=engine)  # type: ignore[arg-type]


def save_modules(folder: Path, name: str) -> str:
    """A folder whose first module has that name; its files are missing."""
    module = {"type": f"sentence_transformers.models.{name}", "path": "", "name": "0"}
    (folder / "modules.json").write_text(json.dumps([module]))
    return str(folder)


def test_the_engine_that_is_named_loads_the_model() -> None:
    assert isinstance(load_model(args_for("debugengine")).replicas[0], FakeBackend)


def test_an_engine_that_this_version_does_not_have_is_refused_with_those_that_it_has() -> None:
    absent = [engine for engine in InferenceEngine if engine not in registry._MODULES]
    for engine in absent:
        known = "torch, optimum, debugengine"
        with pytest.raises(StartupError, match=f"--engine {engine} is not available.*{known}"):
            load_model(args_for(engine))


@pytest.mark.parametrize(
    ("package", "module_name", "first_module"),
    [
        ("torch", "infinity_emb.backends.torch_loading", "Transformer"),
        ("tokenizers", "infinity_emb.backends.static", "StaticEmbedding"),
    ],
)
def test_a_missing_package_is_refused_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, module_name: str, first_module: str
) -> None:
    monkeypatch.delitem(sys.modules, module_name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(StartupError, match=r"needs a package .*pip install 'infinity-emb\[torch\]'"):
        load_model(EngineArgs(model_name_or_path=save_modules(tmp_path, first_module)))


@pytest.mark.parametrize(
    ("first_module", "kind", "loader"),
    [
        ("StaticEmbedding", "auto", "static"),
        ("StaticEmbedding", "embedder", "static"),
        ("StaticEmbedding", "reranker", "torch_loading"),
        ("Transformer", "auto", "torch_loading"),
    ],
)
def test_a_static_embedder_is_loaded_without_torch_and_all_else_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first_module: str, kind: str, loader: str
) -> None:
    name = "infinity_emb.backends.torch_loading"
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(load_model=lambda args, files: "torch_loading"))
    static = importlib.import_module("infinity_emb.backends.static")
    monkeypatch.setattr(static, "load_model", lambda args, files: "static")
    args = EngineArgs(model_name_or_path=save_modules(tmp_path, first_module), model_kind=kind)  # type: ignore[arg-type]

    assert str(load_model(args)) == loader


@pytest.mark.model
@pytest.mark.parametrize("engine", registry._MODULES)
def test_every_module_of_the_table_can_load_a_model(engine: InferenceEngine) -> None:
    module_name, _ = registry._MODULES[engine]
    assert callable(importlib.import_module(module_name).load_model)
