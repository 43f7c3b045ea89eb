"""A model folder that reaches out of itself or that has no end is refused before anything is read."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from infinity_emb.errors import StartupError
from infinity_emb.hub import folder_check
from infinity_emb.hub.folder_check import (
    MAX_CONFIG_BYTES,
    MAX_LABELS,
    MAX_LAYERS,
    MAX_TEXT_BYTES,
    check_folder,
)
from infinity_emb.hub.resolve import resolve_model_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    (path / "1_Pooling").mkdir(parents=True)
    (path / "config.json").write_text(
        json.dumps({"num_hidden_layers": 12, "num_labels": 3, "layers": [1, 2]})
    )
    (path / "1_Pooling" / "config.json").write_text("{}")
    return path


def test_an_ordinary_folder_is_fine(folder: Path) -> None:
    (folder / "same.json").symlink_to("config.json")
    (folder / "1_Pooling" / "up").symlink_to(folder)
    (folder / "dangling").symlink_to("nothing")
    check_folder(folder)
    assert resolve_model_files(str(folder)).path == folder


def test_a_link_to_the_folder_itself_is_fine(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    check_folder(tmp_path / "link")


@pytest.mark.parametrize("name", ["vocab.txt", "1_Pooling/vocab.txt", "2_Dense"])
@pytest.mark.parametrize("is_relative", [True, False])
def test_a_link_out_of_the_folder_is_refused(
    name: str, is_relative: bool, folder: Path, tmp_path: Path
) -> None:
    """A vocabulary that is a link to /etc/passwd was read."""
    secret = tmp_path / "secret"
    secret.mkdir()
    target = os.path.relpath(secret, (folder / name).parent) if is_relative else secret
    (folder / name).symlink_to(target)
    with pytest.raises(StartupError, match="outside of the model's folder; copy"):
        resolve_model_files(str(folder))


def test_a_link_out_of_the_folder_through_another_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "up").symlink_to("..")
    with pytest.raises(StartupError, match="outside"):
        check_folder(folder)
    (folder / "up").unlink()
    (folder / "b").symlink_to("/etc/passwd")
    (folder / "a").symlink_to("b")
    with pytest.raises(StartupError, match="outside"):
        check_folder(folder)


def test_a_folder_with_a_similar_name_is_outside(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model2").mkdir()
    (folder / "x").symlink_to("../model2")
    with pytest.raises(StartupError, match="outside"):
        check_folder(folder)


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_what_is_neither_file_nor_folder_is_refused(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FIFO in the place of a file blocked the load, and all later ones, for ever."""
    path = folder / "model.safetensors"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        monkeypatch.chdir(folder)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    with pytest.raises(StartupError, match="neither a file nor a folder"):
        resolve_model_files(str(folder))


def test_snapshots_of_the_hubs_cache_link_to_its_blobs_only(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--small"
    snapshot = repository / "snapshots" / "0123abcd"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "1").write_text("{}")
    (snapshot / "1_Pooling").mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/1")
    (snapshot / "1_Pooling" / "config.json").symlink_to("../../../blobs/1")
    check_folder(snapshot)
    (tmp_path / "link").symlink_to(snapshot)
    check_folder(tmp_path / "link")

    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("x")
    (snapshot / "vocab.txt").symlink_to("../../refs/main")
    with pytest.raises(StartupError, match="outside"):
        check_folder(snapshot)


def test_the_hubs_blobs_are_a_folder_and_no_link(folder: Path, tmp_path: Path) -> None:
    """A copied folder could make all of the machine its blobs, and link to any file."""
    snapshot = tmp_path / "models--org--small" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "blobs").symlink_to("/")
    (snapshot / "vocab.txt").symlink_to("/etc/passwd")
    with pytest.raises(StartupError, match="outside"):
        check_folder(snapshot)


@pytest.mark.parametrize("name", ["../other", "/etc", "a/../../b", ".."])
@pytest.mark.parametrize(
    ("file", "make_content"),
    [
        ("modules.json", lambda name: [{"path": "", "type": "a.B"}, {"path": name, "type": "a.B"}]),
        ("router_config.json", lambda name: {"types": {name: "a.B"}, "structure": {"query": [name]}}),
        ("0_Router/config.json", lambda name: {"types": {name: "a.B"}}),
        ("model.safetensors.index.json", lambda name: {"weight_map": {"weight": f"{name}/x.safetensors"}}),
        (
            "model.safetensors.index.fp16.json",
            lambda name: {"weight_map": {"weight": f"{name}/x.safetensors"}},
        ),
        ("pytorch_model.bin.index.json", lambda name: {"weight_map": {"a": "b.bin", "weight": name}}),
    ],
)
def test_no_file_of_a_model_names_one_outside(
    file: str, make_content: Callable[[str], object], name: str, folder: Path
) -> None:
    """Another model's weights, or a folder whose configuration nobody has checked."""
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(json.dumps(make_content("1_Dense")))
    check_folder(folder)
    (folder / file).write_text(json.dumps(make_content(name)))
    with pytest.raises(StartupError, match="outside of the model's folder"):
        check_folder(folder)


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": MAX_LAYERS + 1},
        {"n_layer": 10**6},
        {"encoder_layers": 10**9},
        {"num_local_experts": 10**9},
        {"text_config": {"num_layers": 10**6}},
        {"depths": [2, 10**6]},
        {"num_labels": MAX_LABELS + 1},
    ],
)
def test_more_parts_than_any_network_has_are_refused(config: object, folder: Path) -> None:
    """A million layers were built one by one, for ever."""
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(StartupError, match="the limit is"):
        resolve_model_files(str(folder))


def test_numbers_that_are_no_parts_have_no_limit(folder: Path) -> None:
    (folder / "config.json").write_text(
        json.dumps({"vocab_size": 10**7, "num_labels": 20_000, "max_position_embeddings": 10**6})
    )
    check_folder(folder)


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("tokenizer_config.json", MAX_CONFIG_BYTES),
        ("tokenizer.json", MAX_TEXT_BYTES),
        ("vocab.txt", MAX_TEXT_BYTES),
    ],
)
def test_a_huge_text_file_is_not_read(name: str, limit: int, folder: Path) -> None:
    with (folder / name).open("wb") as file:
        file.truncate(limit + 1)  # takes no room on the disk
    with pytest.raises(StartupError, match=f"the limit for such a file is {limit}"):
        check_folder(folder)


def test_a_folder_of_countless_files_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_folder(folder)
    monkeypatch.setattr(folder_check, "MAX_FILES", 2)
    with pytest.raises(StartupError, match="more than 2 files"):
        check_folder(folder)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\ufeff{}", "[]", "1"])
def test_a_file_that_is_no_json_is_left_to_who_reads_it(text: str, folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(text)
    check_folder(folder)
