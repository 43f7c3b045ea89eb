from __future__ import annotations

import importlib
import sys

import pytest

from infinity_emb.backends import registry
from infinity_emb.backends.fake import FakeBackend
from infinity_emb.backends.registry import load_model
from infinity_emb.config import EngineArgs
from infinity_emb.errors import StartupError
from infinity_emb.primitives import InferenceEngine


def args_for(engine: str) -> EngineArgs:
    return EngineArgs(model_name_or_path="debug", engine=engine)  # type: ignore[arg-type]


def test_the_engine_that_is_named_loads_the_model() -> None:
    assert isinstance(load_model(args_for("debugengine")).replicas[0], FakeBackend)


def test_an_engine_that_this_version_does_not_have_is_refused_with_those_that_it_has() -> None:
    absent = [engine for engine in InferenceEngine if engine not in registry._MODULES]
    for engine in absent:
        with pytest.raises(StartupError, match=f"--engine {engine} is not available.*torch, debugengine"):
            load_model(args_for(engine))


def test_a_missing_package_is_refused_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    module_name, extra = registry._MODULES[InferenceEngine.torch]
    monkeypatch.delitem(sys.modules, module_name, raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)

    with pytest.raises(StartupError, match=rf"needs a package .*pip install 'infinity-emb\[{extra}\]'"):
        load_model(args_for("torch"))


@pytest.mark.model
@pytest.mark.parametrize("engine", registry._MODULES)
def test_every_module_of_the_table_can_load_a_model(engine: InferenceEngine) -> None:
    module_name, _ = registry._MODULES[engine]
    assert callable(importlib.import_module(module_name).load_model)
