from __future__ import annotations

import importlib.metadata
import json
import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from infinity_emb.backends import auto_memory
from infinity_emb.backends.auto_memory import INDIFFERENT_OPTIONS, Decision, DecisionFile, decision_file
from infinity_emb.config import EngineArgs
from infinity_emb.model_files import ModelFiles
from infinity_emb.primitives import Device, Dtype, InferenceEngine

DECISION = Decision(
    InferenceEngine.optimum, "measured here: torch 1.00x, optimum 1.31x", ("torch …", "row 2")
)
ARGS = EngineArgs(model_name_or_path="org/model", engine=InferenceEngine.auto)
FILES = ModelFiles(Path("nowhere"), "hub", "a commit")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path))
    return tmp_path


def file_of(args: EngineArgs = ARGS, files: ModelFiles = FILES, **given: Any) -> DecisionFile:
    return decision_file(args, files, **{"libraries": ["torch"], "device_names": []} | given)


def test_what_was_saved_is_loaded_by_the_next_start() -> None:
    assert file_of().load() is None
    file_of().save(DECISION)
    assert file_of().load() == DECISION


def test_a_file_is_named_by_its_model_and_there_is_nothing_else_beside_it(home: Path) -> None:
    file_of().save(DECISION)
    file_of().save(DECISION)
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
    file_of().save(DECISION)
    assert file_of(**other).load() is None


def test_another_processor_version_or_number_of_cores_has_a_file_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (
        ("cpu_name", lambda: "another processor"),
        ("num_usable_cpus", lambda: 999),
        ("__version__", "0.0.1"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(auto_memory, name, value)
            path = file_of().path
        assert path != file_of().path


def test_a_folder_that_is_saved_again_is_measured_again(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    files = ModelFiles(folder, "folder", None)
    before = file_of(files=files).path
    (folder / "config.json").write_text('{"changed": true}')
    assert file_of(files=files).path != before


def test_options_that_make_nothing_faster_share_a_decision() -> None:
    file_of().save(DECISION)
    for other in ({"max_batch_tokens": 512}, {"served_model_name": "short"}, {"max_queue_items": 3}):
        assert file_of(replace(ARGS, **other)).load() == DECISION


def test_every_option_that_is_left_out_exists() -> None:
    assert {each.name for each in fields(EngineArgs)} >= INDIFFERENT_OPTIONS


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"key": null, "engine": "torch", "reason": "", "table": []}',
    ],
)
def test_a_damaged_file_is_logged_and_left_out(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    file_of().save(DECISION)
    file_of().path.write_bytes(content)
    assert file_of().load() is None
    assert "measuring anew" in caplog.text
    file_of().save(DECISION)
    assert file_of().load() == DECISION


@pytest.mark.parametrize(
    ("member", "value"), [("engine", "abacus"), ("table", None), ("key", {"model": "other"})]
)
def test_a_file_that_somebody_changed_is_left_out(
    member: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    file_of().save(DECISION)
    path = file_of().path
    path.write_text(json.dumps(json.loads(path.read_text()) | {member: value}))
    assert file_of().load() is None
    assert str(path) in caplog.text


def test_a_folder_that_cannot_be_written_is_a_warning(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    (home / "infinity_emb").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        file_of().save(DECISION)
    assert "set INFINITY_HOME to a folder that can be written" in caplog.text
    assert file_of().load() is None


def test_versions_are_those_of_whichever_package_brings_a_library() -> None:
    found = auto_memory._versions(["numpy", "PIL", "no_such_library"])
    assert found["numpy"] == importlib.metadata.version("numpy")
    assert found["PIL"] == f"pillow {importlib.metadata.version('pillow')}"
    assert found["no_such_library"] == ""
