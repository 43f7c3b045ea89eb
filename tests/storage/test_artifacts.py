"""Make an artifact once; and what happens to one that is corrupt, unwritable or made twice at once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infinity_emb.errors import DeviceFailed, StartupError
from infinity_emb.hub.resolve import ModelFiles
from infinity_emb.storage.artifacts import CachedArtifact, artifact_dir, reuse_or_fill
from infinity_emb.storage.keyed_file import make_keyed_name


def artifact(home: Path, make: Callable[[Path], None]) -> CachedArtifact:
    return CachedArtifact(action="folding m", folder=home / "m-1", main_file="main", make=make)


class Maker:
    """Writes two files; the main one tells how often it was called."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, folder: Path) -> None:
        self.num_calls += 1
        (folder / "main").write_text(f"made {self.num_calls}")
        (folder / "other").write_text("beside")


def read_whole(path: Path) -> str:
    text = path.read_text()
    if not text.startswith("made"):
        raise StartupError(f"{text!r} is damaged")
    return text


def files_in(home: Path) -> list[str]:
    return sorted(str(each.relative_to(home)) for each in home.rglob("*") if each.is_file())


def test_it_is_artifact(tmp_path: Path) -> None:
    maker = Maker()
    assert artifact(tmp_path, maker).ensure().read_text() == "made 1"
    assert artifact(tmp_path, maker).open_or_rebuild(read_whole) == "made 1"
    assert maker.num_calls == 1
    assert files_in(tmp_path) == ["m-1/main", "m-1/other"]


def test_a_refused_artifact_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    maker = Maker()
    artifact(tmp_path, maker).ensure().write_text("")
    assert artifact(tmp_path, maker).open_or_rebuild(read_whole) == "made 2"
    assert "folding m again, because the cached file was refused: '' is damaged" in caplog.text
    assert files_in(tmp_path) == ["m-1/main", "m-1/other"]


def test_an_artifact_without_its_main_file_is_made_again(tmp_path: Path) -> None:
    maker = Maker()
    artifact(tmp_path, maker).ensure().unlink()
    assert artifact(tmp_path, maker).open_or_rebuild(read_whole) == "made 2"


def test_a_device_failure_does_not_make_it_again(tmp_path: Path) -> None:
    maker = Maker()
    artifact(tmp_path, maker).ensure()

    def fail(path: Path) -> None:
        raise DeviceFailed("no driver")

    with pytest.raises(DeviceFailed, match="no driver"):
        artifact(tmp_path, maker).open_or_rebuild(fail)
    assert maker.num_calls == 1


def test_a_refused_artifact_stays_if_another_cannot_be_made(tmp_path: Path) -> None:
    """It may be in order, and the reason to refuse it another one."""
    artifact(tmp_path, Maker()).ensure().write_text("made by hand, refused")

    def full(folder: Path) -> None:
        raise OSError("no space left")

    def refuse(path: Path) -> None:
        raise StartupError("refused")

    with pytest.raises(StartupError, match="no space left"):
        artifact(tmp_path, full).open_or_rebuild(refuse)
    assert files_in(tmp_path) == ["m-1/main", "m-1/other"]


def test_a_new_artifact_that_is_refused_is_not_made_again(tmp_path: Path) -> None:
    maker = Maker()

    def refuse(path: Path) -> None:
        raise StartupError("not this model")

    with pytest.raises(StartupError, match="not this model"):
        artifact(tmp_path, maker).open_or_rebuild(refuse)
    assert maker.num_calls == 1
    with pytest.raises(StartupError, match="not this model"):
        artifact(tmp_path, maker).open_or_rebuild(refuse)
    assert maker.num_calls == 2


def test_two_makers_at_once_both_get_a_complete_one(tmp_path: Path) -> None:
    """Each writes into a folder of its own, and the first one stays."""
    both_write = threading.Barrier(2, timeout=30)
    found: list[str] = []

    def make(folder: Path) -> None:
        both_write.wait()
        Maker()(folder)

    threads = [
        threading.Thread(target=lambda: found.append(artifact(tmp_path, make).open_or_rebuild(read_whole)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["made 1", "made 1"]
    assert files_in(tmp_path) == ["m-1/main", "m-1/other"]


def test_drafts_of_killed_processes_are_removed_after_a_day(tmp_path: Path) -> None:
    """Nobody else would ever remove them; younger ones may be under way."""
    yesterday_s = time.time() - 25 * 3600
    left, other, young, foreign = (
        tmp_path / name
        for name in (
            f"m-1.{'a' * 32}.draft",
            f"of-another-model.{'b' * 32}.draft",
            f"m-1.{'c' * 32}.draft",
            "of-somebody.draft",
        )
    )
    for folder in (left, other, young, foreign):
        folder.mkdir()
        (folder / "main").write_text("half")
    for folder in (left, other, foreign):
        os.utime(folder, (yesterday_s, yesterday_s))
    artifact(tmp_path, Maker()).ensure()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m-1", young.name, foreign.name]


def test_a_failed_artifact_names_the_remedy_and_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise NotImplementedError("no such\nfold")

    with pytest.raises(
        StartupError, match=r"folding m failed \(NotImplementedError: no such fold\); use --engine torch"
    ):
        artifact(tmp_path, fail).ensure()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_writable_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match=r"folding m failed: cannot write to .*file.*; set INFINITY_HOME"):
        artifact(tmp_path / "file", Maker()).ensure()


def test_a_refused_artifact_that_cannot_be_replaced_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact(tmp_path, Maker()).ensure().write_text("")

    def fail(*given: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(StartupError, match="is damaged"):
        artifact(tmp_path, Maker()).open_or_rebuild(read_whole)


def test_each_model_and_revision_has_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    local = ModelFiles(tmp_path, "folder", None)
    names = [
        make_keyed_name("some/model", local.version, 1),
        make_keyed_name("some/model", local.version, 2),
        make_keyed_name("some/model", ModelFiles(tmp_path, "hub", "a commit").version, 1),
        make_keyed_name("other/model", local.version, 1),
    ]
    assert make_keyed_name("some/model", local.version, 1) == names[0]
    (tmp_path / "config.json").write_text("{ }")
    names.append(make_keyed_name("some/model", local.version, 1))
    assert len(set(names)) == 5
    assert names[0].startswith("some-model-")
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path))
    assert tmp_path in artifact_dir("engine").parents


def test_a_folder_is_filled_once_and_reused(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    for content in ("first", "second"):
        with reuse_or_fill(folder) as place:
            (place / content).touch()
    assert files_in(tmp_path) == ["cache/first", "cache/second"]


def test_a_folder_whose_filling_fails_is_not_kept(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        with reuse_or_fill(folder) as place:
            Maker()(place)
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fail(tmp_path / "cache")
    assert not list(tmp_path.iterdir())
