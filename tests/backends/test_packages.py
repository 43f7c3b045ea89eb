"""Packages that an engine or a model needs are named, with the line that installs them, before a download."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from infinity_emb.backends import packages, registry
from infinity_emb.backends.packages import check_model_packages
from infinity_emb.backends.registry import load_model
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.errors import StartupError

ROOT = Path(__file__).parents[2]
Without = Callable[..., None]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Without:
    """Take packages away."""

    def take_away(*missing: str) -> None:
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(
            packages, "is_installed", lambda name: name not in missing and find_spec(name) is not None
        )

    return take_away


def describe(folder: Path) -> str:
    with pytest.raises(StartupError) as caught:
        check_model_packages("org/x", folder)
    return str(caught.value)


@pytest.mark.parametrize("where", ["", "0_Transformer"])
def test_an_adapter_names_its_base_and_the_package(where: str, tmp_path: Path, without: Without) -> None:
    without("peft")
    (tmp_path / where).mkdir(exist_ok=True)
    modules = [{"type": "sentence_transformers.models.Transformer", "path": where}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    adapter = {"base_model_name_or_path": "org/base"}
    (tmp_path / where / "adapter_config.json").write_text(json.dumps(adapter))
    assert "'org/x' is an adapter of 'org/base'" in describe(tmp_path)
    assert describe(tmp_path).endswith("pip install 'infinity-emb[peft]'")


@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model"])
def test_a_sentencepiece_file_alone_names_the_package(name: str, tmp_path: Path, without: Without) -> None:
    without("sentencepiece")
    (tmp_path / name).write_bytes(b"\n\x0e\n\x05<unk>")
    assert f"({name})" in describe(tmp_path)
    assert describe(tmp_path).endswith("pip install 'infinity-emb[sentencepiece]'")
    (tmp_path / "tokenizer.json").write_text("{}")
    check_model_packages("org/x", tmp_path)


def test_a_tiktoken_file_of_the_same_name_needs_no_sentencepiece(tmp_path: Path, without: Without) -> None:
    without("sentencepiece")
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    check_model_packages("org/x", tmp_path)


@pytest.mark.model
@pytest.mark.parametrize(
    ("method", "package"),
    [("awq", "gptqmodel"), ("gptq", "optimum"), ("compressed-tensors", "compressed-tensors")],
)
def test_quantized_weights_name_the_package_that_reads_them(
    method: str, package: str, tmp_path: Path
) -> None:
    config = {"model_type": "bert", "quantization_config": {"quant_method": method, "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert f"has weights of {method!r}" in describe(tmp_path)
    assert f"pip install {package}" in describe(tmp_path)


@pytest.mark.model
def test_a_quantization_that_is_not_understood_is_left_to_who_loads_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "no such"}}')
    check_model_packages("org/x", tmp_path)


def test_the_extras_that_messages_name_exist() -> None:
    """`pip install infinity-emb[x]` only warns of an extra that does not exist."""
    project = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    extras = dict(re.findall(r"^([\w-]+) = \[(.*)", project, re.MULTILINE))
    named = {engine.extra for engine in registry._ENGINES.values() if engine.extra}
    assert {*named, "peft", "sentencepiece", "minilm"} <= set(extras)
    assert '"peft>=' in extras["peft"]
    assert '"sentencepiece>=' in extras["sentencepiece"]


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Steps of the download of a model that is on the hub."""
    steps: list[str] = []
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')

    def fetch(*_: object, check: Callable[[Path], object], **__: object) -> None:
        steps.append("configuration")
        check(tmp_path)
        steps.append("weights")
        raise StartupError("enough")

    monkeypatch.setattr(registry, "resolve_model_files", fetch)
    return steps


@pytest.mark.parametrize(
    ("engine", "library", "extra"),
    [
        ("torch", "sentence_transformers", "torch"),
        ("auto", "torch", "torch"),
        ("optimum", "onnxruntime", "optimum"),
        ("openvino", "openvino", "openvino"),
        ("ctranslate2", "ctranslate2", "ct2"),
    ],
)
def test_weights_are_not_downloaded_for_an_engine_that_is_not_installed(
    engine: str, library: str, extra: str, downloads: list[str], without: Without
) -> None:
    """The engine was imported after the download of a model that it could not run."""
    without(library)
    with pytest.raises(StartupError) as caught:
        load_model(EngineArgs("org/x", engine=engine))
    assert str(caught.value) == (
        f"--engine {engine} needs a package that is not installed ({library});"
        f" install it with: pip install 'infinity-emb[{extra}]'"
    )
    assert downloads == ["configuration"]


def test_nothing_is_downloaded_where_no_model_can_be_read(downloads: list[str], without: Without) -> None:
    without("tokenizers")
    with pytest.raises(StartupError, match="not installed \\(tokenizers\\)"):
        load_model(EngineArgs("org/x"))
    assert downloads == []


def test_a_static_model_needs_no_torch(downloads: list[str], tmp_path: Path, without: Without) -> None:
    without("torch", "transformers", "sentence_transformers")
    (tmp_path / "config.json").write_text('{"model_type": "model2vec"}')
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(StartupError, match="enough"):
        load_model(EngineArgs("org/x"))
    assert downloads == ["configuration", "weights"]
