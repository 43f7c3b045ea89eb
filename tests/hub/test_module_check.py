"""Pipelines without a file that one of their modules is built from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from infinity_emb.errors import StartupError
from infinity_emb.hub.contents_check import check_contents

FILES = {
    "0_Transformer": ["config.json"],
    "1_Pooling": ["config.json"],
    "2_Dense": ["config.json", "model.safetensors"],
}


def save_pipeline(folder: Path, class_names: Sequence[str]) -> None:
    modules = [
        {"type": f"sentence_transformers.models.{name}", "path": f"{number}_{name}"}
        for number, name in enumerate(class_names)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pipeline(tmp_path, ["Transformer", "Pooling", "Dense"])
    for name, files in FILES.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("{}")
    return tmp_path


def test_a_whole_pipeline_passes(folder: Path) -> None:
    check_contents(folder)


@pytest.mark.parametrize("path", [f"{name}/{file}" for name, files in FILES.items() for file in files])
def test_a_file_that_a_module_needs_is_named_with_its_folder(path: str, folder: Path) -> None:
    """The libraries named the folder of the model: "Could not find 'model.safetensors' in MODEL"."""
    (folder / path).unlink()
    with pytest.raises(StartupError, match=f"/{path} is missing, though modules.json names the module"):
        check_contents(folder)


def test_other_files_may_take_its_place(folder: Path) -> None:
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
    (folder / "0_Transformer" / "config.json").rename(folder / "0_Transformer" / "adapter_config.json")
    check_contents(folder)


@pytest.mark.parametrize(
    ("class_name", "missing"),
    [
        ("StaticEmbedding", r"tokenizer\.json"),
        ("SparseStaticEmbedding", r"tokenizer\.json"),
        ("LSTM", r"lstm_config\.json"),
        ("CNN", r"cnn_config\.json"),
        ("WordEmbeddings", r"wordembedding_config\.json"),
        ("WeightedLayerPooling", r"config\.json"),
    ],
)
def test_each_class_has_its_own_files(class_name: str, missing: str, tmp_path: Path) -> None:
    save_pipeline(tmp_path, [class_name])
    with pytest.raises(StartupError, match=f"0_{class_name}/{missing} is missing"):
        check_contents(tmp_path)


def test_a_list_of_no_modules_is_refused(folder: Path) -> None:
    (folder / "modules.json").write_text("[]")
    with pytest.raises(StartupError, match=r"modules\.json lists no modules"):
        check_contents(folder)


@pytest.mark.parametrize("path", [None, 3])
def test_a_module_without_a_path_is_refused(path: object, folder: Path) -> None:
    module = {"type": "sentence_transformers.models.Pooling", "path": path}
    (folder / "modules.json").write_text(json.dumps([module]))
    with pytest.raises(StartupError, match="a module without a type or a path"):
        check_contents(folder)


def test_module_folders_without_their_list_are_refused_unless_the_pooling_is_given(folder: Path) -> None:
    (folder / "modules.json").unlink()
    with pytest.raises(StartupError, match=r"modules\.json is missing.*1_Pooling.*--pooling-method"):
        check_contents(folder)
    check_contents(folder, is_pooling_given=True)
