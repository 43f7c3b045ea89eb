"""Folders that are refused before a library reads them, with the file and the way out."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from infinity_emb.errors import StartupError
from infinity_emb.hub.contents_check import check_contents, explain_unreadable_weights

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 10\n"


def write_safetensors(path: Path, num_values: int = 4) -> None:
    header = {"x": {"dtype": "F32", "shape": [num_values], "data_offsets": [0, 4 * num_values]}}
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(4 * num_values))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of an embedder; check_contents reads no further than this."""
    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
        {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    write_safetensors(tmp_path / "model.safetensors")
    return tmp_path


def test_a_whole_folder_passes(folder: Path) -> None:
    check_contents(folder)
    assert not explain_unreadable_weights(folder)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "config.json", "1_Pooling/config.json", "vocab.txt"]
)
def test_a_pointer_of_git_lfs_is_named(name: str, folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / name).write_text(POINTER)
    with pytest.raises(StartupError, match=f"{name} is a Git LFS pointer.*git lfs pull"):
        check_contents(folder)


def test_files_that_are_not_read_for_the_model_may_be_pointers(folder: Path) -> None:
    (folder / "onnx").mkdir()
    for name in ("onnx/model.onnx", "tf_model.h5", "README.md", "pytorch_model.bin"):
        (folder / name).write_text(POINTER)
    check_contents(folder)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_named(folder: Path) -> None:
    (folder / "model.safetensors").chmod(0)
    with pytest.raises(StartupError, match=r"model\.safetensors may not be read.*chmod"):
        check_contents(folder)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"\x01", "is cut off after 1 bytes"),
        (struct.pack("<Q", 5000) + b"{}", "is cut off after 10 bytes"),
        (struct.pack("<Q", 2**60) + b"{}", "is not a safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "is not a safetensors file"),
        (struct.pack("<Q", 2) + b"{]", "is not a safetensors file"),
    ],
)
def test_weights_that_are_not_whole_are_explained(content: bytes, expected: str, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert expected in explain_unreadable_weights(folder)


def test_weights_without_their_last_bytes_are_explained(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-3])
    assert f"is cut off: it has {len(data) - 3} of {len(data)} bytes" in explain_unreadable_weights(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    with pytest.raises(
        StartupError, match=r"model-00002-of-00002\.safetensors is missing \(1 of the 2 parts"
    ):
        check_contents(folder)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "modules.json",
        "1_Pooling/config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "special_tokens_map.json",
        "added_tokens.json",
        "preprocessor_config.json",
        "sentence_bert_config.json",
        "sentence_xlm-roberta_config.json",
        "config_sentence_transformers.json",
        "model.safetensors.index.json",
    ],
)
@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"\xef\xbb\xbf{}", "begins with a byte order mark"), (b"", "is empty"), (POINTER.encode(), "LFS")],
)
def test_a_text_file_that_the_libraries_cannot_read_is_named(
    name: str, content: bytes, expected: str, folder: Path
) -> None:
    for first in ("tokenizer.json", "model.safetensors"):
        (folder / first).unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(StartupError, match=f"{name} .*{expected}"):
        check_contents(folder)


@pytest.mark.parametrize(
    "name",
    [
        "generation_config.json",
        "eval_results.json",
        "chat_template.json",
        "vocab.json",  # these beside tokenizer.json
        "vocab.txt",
        "merges.txt",
        "model.safetensors.index.json",  # beside model.safetensors
    ],
)
@pytest.mark.parametrize("content", [b"\xef\xbb\xbf{}", b"", POINTER.encode()])
def test_a_text_file_that_is_not_read_may_hold_anything(name: str, content: bytes, folder: Path) -> None:
    """sentence-transformers serves the folder; the results of an evaluation were refused."""
    (folder / name).write_bytes(content)
    check_contents(folder)


def test_parts_without_their_index_are_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(
        StartupError, match=r"model\.safetensors\.index\.json is missing, without which model-"
    ):
        check_contents(folder)


@pytest.mark.parametrize("content", [{}, {"metadata": {}}, {"weight_map": {"a": "b"}}, {"weight_map": []}])
def test_an_index_that_the_libraries_cannot_read_is_named(content: dict[str, Any], folder: Path) -> None:
    """The error was `KeyError: 'metadata'`."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(StartupError, match=r"index\.json needs the objects 'weight_map' and 'metadata'"):
        check_contents(folder)


def test_an_index_beside_whole_weights_is_not_read(folder: Path) -> None:
    """Who downloads safetensors and JSON alone has it; it was refused for its missing parts."""
    weight_map = {"a": "pytorch_model-00001-of-00002.bin"}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    check_contents(folder)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>", "was not written by torch.save"),
        (struct.pack("<Q", 2) + b"{}", "was not written by torch.save"),
        (b"PK\x03\x04" + bytes(100), "is cut off or damaged"),
    ],
)
def test_pickles_that_torch_cannot_read_are_explained(content: bytes, problem: str, folder: Path) -> None:
    """torch advises to load them in a way that runs code."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    assert f"pytorch_model.bin {problem}" in explain_unreadable_weights(folder)


@pytest.mark.parametrize("is_archive", [True, False])
def test_pickles_that_torch_can_read_are_whole(is_archive: bool, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.ones(2)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=is_archive)
    assert explain_unreadable_weights(folder) == ""


def test_bytes_behind_the_weights_are_explained(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    assert "has 4 bytes more than its header describes" in explain_unreadable_weights(folder)


def test_a_router_is_looked_into(folder: Path) -> None:
    modules = [{"type": "sentence_transformers.base.modules.router.Router", "path": ""}]
    (folder / "modules.json").write_text(json.dumps(modules))
    types = {"query_1_Dense": "sentence_transformers.base.modules.dense.Dense"}
    config = {"types": types, "structure": {"query": list(types)}, "parameters": {}}
    (folder / "router_config.json").write_text(json.dumps(config))
    with pytest.raises(StartupError, match=r"query_1_Dense/config\.json is missing"):
        check_contents(folder)


@pytest.mark.parametrize("value", ["128", 128.5, 0, -1, True, [128]])
@pytest.mark.parametrize(
    ("name", "key"),
    [("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")],
)
def test_limits_that_are_no_numbers_of_tokens_are_refused(
    name: str, key: str, value: Any, folder: Path
) -> None:
    (folder / name).write_text(json.dumps({key: value}))
    with pytest.raises(StartupError, match=f"{name} has {key}=.*it must be a whole number above 0"):
        check_contents(folder)


@pytest.mark.parametrize("value", [512, None, 10**30, 1e30])
def test_limits_of_no_limit_pass(value: Any, folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": value}))
    check_contents(folder)


@pytest.mark.parametrize("prompts", [None, [], "query: ", {"query": 1}])
def test_prompts_of_another_shape_are_refused(prompts: Any, folder: Path) -> None:
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    with pytest.raises(StartupError, match="has prompts="):
        check_contents(folder)
