from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.numpy import save_file

from infinity_emb.backends import fake, registry
from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.fake import FakeBackend
from infinity_emb.backends.registry import installed_engines, load_model
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.errors import StartupError
from infinity_emb.types import InferenceEngine


def args_for(engine: str) -> EngineArgs:
    return EngineArgs(model_name_or_path="debug", engine=engine)


def save_modules(folder: Path, name: str) -> str:
    """A folder whose first module has that name; its files are there, but hold nothing."""
    module = {"type": f"sentence_transformers.models.{name}", "path": "", "name": "0"}
    (folder / "modules.json").write_text(json.dumps([module]))
    for file in ("config.json", "tokenizer.json"):
        (folder / file).write_text("{}")
    save_file({}, folder / "model.safetensors")
    return str(folder)


def loads_from(source: str) -> Callable[..., LoadedModel]:
    """A `load_model` whose models tell where they come from."""
    # Without a vocabulary, texts of one length may have the same vector, as the fake's have.
    model = replace(fake.load_model(args_for("debugengine")), vocabulary=None)
    return lambda args, files: replace(model, info=replace(model.info, source=source))


def test_the_engine_that_is_named_loads_the_model() -> None:
    assert isinstance(load_model(args_for("debugengine")).replicas[0], FakeBackend)


@pytest.mark.parametrize(
    ("engine", "is_told"), [("torch", True), ("ctranslate2", True), ("onnx", False), ("auto", False)]
)
def test_an_engine_that_reads_no_graphs_says_that_a_graph_s_name_has_no_effect(
    engine: str,
    is_told: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = load_model(args_for("debugengine"))
    monkeypatch.setattr(registry, "load_from", lambda args, files: model)
    (tmp_path / "config.json").write_text("{}")
    given: Any = {"model_name_or_path": str(tmp_path), "engine": engine, "graph_file": "model_O3.onnx"}
    load_model(EngineArgs(**given))
    assert ("--graph-file model_O3.onnx has no effect with --engine" in caplog.text) is is_told


def test_an_engine_that_this_version_does_not_have_is_refused_with_those_that_it_has() -> None:
    absent = [engine for engine in InferenceEngine if engine not in registry._ENGINES]
    for engine in absent:
        known = ", ".join(registry._ENGINES)
        with pytest.raises(StartupError, match=f"--engine {engine} is not available.*{known}"):
            load_model(args_for(engine))


@pytest.mark.parametrize(
    ("package", "module_name", "first_module"),
    [
        ("torch", "infinity_emb.backends.torch.load", "Transformer"),
        ("tokenizers", "infinity_emb.backends.static.load", "StaticEmbedding"),
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
    name = "infinity_emb.backends.torch.load"
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(load_model=loads_from("torch_loading")))
    static = importlib.import_module("infinity_emb.backends.static.load")
    monkeypatch.setattr(static, "load_model", loads_from("static"))
    args = EngineArgs(model_name_or_path=save_modules(tmp_path, first_module), model_kind=kind)

    assert load_model(args).info.source == loader


def test_a_model_tells_the_engine_that_loaded_it() -> None:
    info = load_model(args_for("debugengine")).info
    assert (info.engine, info.engine_reason) == ("debugengine", "--engine, or its default")


def test_a_static_embedder_needs_no_measurement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    static = importlib.import_module("infinity_emb.backends.static.load")
    monkeypatch.setattr(static, "load_model", loads_from("static"))
    monkeypatch.setitem(sys.modules, "infinity_emb.backends.auto.load", None)
    args = EngineArgs(model_name_or_path=save_modules(tmp_path, "StaticEmbedding"), engine="auto")

    info = load_model(args).info
    assert (info.source, info.engine) == ("static", "torch")


def test_engines_are_installed_where_their_libraries_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch comes first; neither the fake engine nor `auto` itself is among them."""
    present = {"torch", "onnxruntime"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in present else None)
    assert installed_engines() == {
        InferenceEngine.torch: "torch",
        InferenceEngine.optimum: "onnxruntime",
    }
    assert next(iter(installed_engines())) is InferenceEngine.torch
    present.remove("torch")
    assert list(installed_engines()) == [InferenceEngine.optimum]


@pytest.mark.model
@pytest.mark.parametrize("engine", registry._ENGINES)
def test_every_module_of_the_table_can_load_a_model(engine: InferenceEngine) -> None:
    module_name = registry._ENGINES[engine].module
    assert callable(importlib.import_module(module_name).load_model)


def test_a_load_that_takes_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million layers were built for ever."""

    def build_layers(args: Any, files: Any) -> LoadedModel:
        while True:
            pass

    monkeypatch.setattr(fake, "load_model", build_layers)
    with pytest.raises(StartupError, match=r"took longer than 1 s; raise --load-timeout-s"):
        load_model(replace(args_for("debugengine"), load_timeout_s=1))
