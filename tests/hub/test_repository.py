"""Files that torch does not read: from the hub at the model's commit, or of a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infinity_emb.errors import StartupError
from infinity_emb.hub.repository import fetch_file, list_files
from infinity_emb.hub.resolve import ModelFiles
from tests.support.hub_server import HubServer, commit_hash

FILES = {"config.json": b"{}", "onnx/model.onnx": b"graph", "onnx/model_O3.onnx": b"another"}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer({"org/small": {"main": FILES}}) as server:
        yield server


@pytest.fixture
def model(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFiles:
    """A snapshot as torch needs it."""
    constants = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path),
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }
    for name, value in constants.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_TOKEN", "")
    commit = commit_hash("org/small", FILES)
    path = tmp_path / "models--org--small" / "snapshots" / commit
    path.mkdir(parents=True)
    (path / "config.json").write_bytes(b"{}")
    return ModelFiles(path, "hub", commit, repo_id="org/small", names=tuple(sorted(FILES)))


def test_what_the_hub_has_told_is_listed_and_one_file_is_fetched_once(
    hub: HubServer, model: ModelFiles
) -> None:
    assert list_files(model) == sorted(FILES)
    path = fetch_file(model, "onnx/model.onnx")
    assert path.read_bytes() == b"graph"
    assert path == model.path / "onnx" / "model.onnx"
    assert hub.fetched_files() == ["onnx/model.onnx"]
    hub.requests.clear()
    assert fetch_file(model, "onnx/model.onnx") == path
    assert hub.requests == []


def test_without_the_hub_there_is_what_is_here(hub: HubServer, model: ModelFiles) -> None:
    hub.failures["*"] = 404
    assert list_files(replace(model, names=())) == ["config.json"]
    with pytest.raises(StartupError, match=r"onnx/model.onnx of 'org/small' cannot be downloaded"):
        fetch_file(model, "onnx/model.onnx")


def test_a_folder_has_what_lies_in_it(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").touch()
    files = ModelFiles(tmp_path, "folder", None)
    assert "onnx/model.onnx" in list_files(files)
    assert fetch_file(files, "onnx/model.onnx") == tmp_path / "onnx" / "model.onnx"
