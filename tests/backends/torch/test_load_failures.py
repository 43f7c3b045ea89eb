"""Folders that a library cannot load, in one line: what is wrong, and the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infinity_emb.backends.torch.load_failures import describe_failure
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.hub.resolve import ModelFiles


def describe(folder: Path, message: str = "no details") -> str:
    files = ModelFiles(path=folder, source="folder", revision=None)
    return describe_failure(EngineArgs(model_name_or_path="org/x").load, files, OSError(message))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    return tmp_path


def test_an_adapter_without_its_base_says_where_it_must_be(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    assert "an adapter of 'org/base', which must be on this machine" in describe(folder)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("model.onnx", "use --engine onnx"), ("model-q4.gguf", "which llama.cpp computes")],
)
def test_files_of_other_programs_are_named(name: str, expected: str, folder: Path) -> None:
    (folder / name).write_bytes(b"x")
    assert f"has no torch weights, but {name}" in describe(folder)
    assert expected in describe(folder)


def test_no_tokenizer_is_said_plainly(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    assert "has no tokenizer: copy tokenizer.json" in describe(folder, "Unrecognized processing class in x")


@pytest.mark.parametrize("content", [b"", b"\xff"])
def test_weights_that_are_not_whole_are_named(content: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert "model.safetensors is " in describe(folder)


@pytest.mark.parametrize("content", ["<!DOCTYPE html>", "{}", "null", '{"version": '])
def test_a_broken_tokenizer_is_named(content: str, folder: Path) -> None:
    """It was said to be missing."""
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    (folder / "tokenizer.json").write_text(content)
    expected = "tokenizer.json is not a file of the tokenizers library"
    assert expected in describe(folder, "Unrecognized processing class in x")


def test_values_that_a_module_lacks_are_named_with_its_folder(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    modules = [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    text = "Pooling.__init__() missing 1 required positional argument: 'embedding_dimension'"
    assert "1_Pooling lacks 'embedding_dimension'" in describe(folder, text)


def test_all_else_keeps_the_words_of_the_library(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    expected = "model 'org/x' could not be loaded: OSError: needs a package"
    assert describe(folder, "needs\na package") == expected


def test_code_of_a_repository_is_named_first(folder: Path) -> None:
    given: Any = "pass the option trust_remote_code=True"
    assert "--trust-remote-code" in describe(folder, given)
