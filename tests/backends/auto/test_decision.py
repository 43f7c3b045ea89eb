from __future__ import annotations

import importlib.metadata
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infinity_emb.backends.auto import decision as module
from infinity_emb.backends.auto.decision import (
    Decision,
    find_decision_file,
    find_version,
    load_decision,
    save_decision,
)
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.hub.resolve import ModelFiles
from infinity_emb.storage.keyed_file import KeyedFile
from infinity_emb.types import Device, Dtype, InferenceEngine

DECISION = Decision(
    InferenceEngine.optimum, "measured here: torch 1.00x, optimum 1.31x", ("torch …", "row 2")
)
ARGS = EngineArgs(model_name_or_path="org/model", engine=InferenceEngine.auto)
FILES = ModelFiles(Path("nowhere"), "hub", "a commit")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path))
    return tmp_path


def find_file(args: EngineArgs = ARGS, files: ModelFiles = FILES, **given: Any) -> KeyedFile:
    return find_decision_file(args, files, **{"libraries": ["torch"], "device_names": []} | given)


def save() -> None:
    save_decision(find_file(), DECISION)


def test_what_was_saved_is_loaded_by_the_next_start() -> None:
    assert load_decision(find_file()) is None
    save()
    assert load_decision(find_file()) == DECISION


def test_a_file_is_named_by_its_model_and_there_is_nothing_else_beside_it(home: Path) -> None:
    save()
    save()
    (path,) = (each for each in home.rglob("*") if each.is_file())
    assert path.parent == home / "infinity_emb" / "engines"
    assert path.name.startswith("org-model-")


@pytest.mark.parametrize(
    "other",
    [
        {"args": replace(ARGS, model_name_or_path="org/other")},
        {"files": ModelFiles(Path("nowhere"), "hub", "another commit")},
        {"args": replace(ARGS, dtype=Dtype.int8)},
        {"args": replace(ARGS, device=Device.cpu)},
        {"args": replace(ARGS, threads=3)},
        {"args": replace(ARGS, graph_file="model_O3.onnx")},
        {"libraries": ["torch", "numpy"]},
        {"device_names": ["Some GPU"]},
    ],
)
def test_what_may_change_the_choice_has_a_file_of_its_own(other: dict[str, Any]) -> None:
    save()
    assert load_decision(find_file(**other)) is None


def test_another_processor_version_or_number_of_cores_has_a_file_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (
        ("cpu_name", lambda: "another processor"),
        ("num_usable_cpus", lambda: 999),
        ("__version__", "0.0.1"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            path = find_file().path
        assert path != find_file().path


def test_a_folder_that_is_saved_again_is_measured_again(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    files = ModelFiles(folder, "folder", None)
    before = find_file(files=files).path
    (folder / "config.json").write_text('{"changed": true}')
    assert find_file(files=files).path != before


def test_options_that_make_nothing_faster_share_a_decision() -> None:
    save()
    for other in ({"max_batch_tokens": 512}, {"served_model_name": "short"}, {"max_queue_items": 3}):
        assert load_decision(find_file(replace(ARGS, **other))) == DECISION


def test_a_decision_is_json_for_people_to_read(home: Path) -> None:
    save()
    content, _, _ = find_file().path.read_text().rstrip().rpartition("\n")
    stored = json.loads(content)
    assert (stored["engine"], stored["key"]["model"]) == ("optimum", "org/model")


@pytest.mark.parametrize(("old", "new"), [('"optimum"', '"abacus"'), ('"org/model"', '"other"')])
def test_a_file_that_was_edited_is_ignored(old: str, new: str, caplog: pytest.LogCaptureFixture) -> None:
    save()
    path = find_file().path
    path.write_text(path.read_text().replace(old, new))
    assert load_decision(find_file()) is None
    assert f"engine decision {path} is corrupt; recomputing" in caplog.text


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[]", b"{}", b'{"key": null, "engine": "torch", "reason": "", "table": []}'],
)
def test_a_corrupt_file_is_logged_and_ignored(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    save()
    find_file().path.write_bytes(content)
    assert load_decision(find_file()) is None
    assert "is corrupt; recomputing" in caplog.text
    save()
    assert load_decision(find_file()) == DECISION


def test_versions_are_those_of_the_packages_that_bring_a_library() -> None:
    assert find_version("numpy") == importlib.metadata.version("numpy")
    assert find_version("PIL") == f"pillow {importlib.metadata.version('pillow')}"
    assert find_version("no_such_library") == ""
