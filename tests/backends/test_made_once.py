"""What is kept of a conversion, and what happens to one that is damaged, unwritable or made twice at once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infinity_emb.backends.made_once import MadeOnce, folder_name, folder_of_engine
from infinity_emb.config import EngineArgs
from infinity_emb.errors import DeviceFailed, StartupError
from infinity_emb.model_files import ModelFiles


def made_once(home: Path, make: Callable[[Path], None]) -> MadeOnce:
    return MadeOnce(model="m", deed="folded", folder=home / "m-1", main_file="main", make=make)


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


def test_it_is_made_once(tmp_path: Path) -> None:
    maker = Maker()
    assert made_once(tmp_path, maker).path().read_text() == "made 1"
    assert made_once(tmp_path, maker).opened(read_whole) == "made 1"
    assert maker.num_calls == 1
    assert files_in(tmp_path) == ["m-1/main", "m-1/other"]


def test_a_damaged_one_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    maker = Maker()
    made_once(tmp_path, maker).path().write_text("")
    assert made_once(tmp_path, maker).opened(read_whole) == "made 2"
    assert "is folded again: '' is damaged" in caplog.text
    assert files_in(tmp_path) == ["m-1/main", "m-1/other"]


def test_one_that_lacks_its_main_file_is_made_again(tmp_path: Path) -> None:
    maker = Maker()
    made_once(tmp_path, maker).path().unlink()
    assert made_once(tmp_path, maker).opened(read_whole) == "made 2"


def test_a_device_that_fails_is_no_reason_to_make_it_again(tmp_path: Path) -> None:
    maker = Maker()
    made_once(tmp_path, maker).path()

    def fail(path: Path) -> None:
        raise DeviceFailed("no driver")

    with pytest.raises(DeviceFailed, match="no driver"):
        made_once(tmp_path, maker).opened(fail)
    assert maker.num_calls == 1


def test_a_damaged_one_stays_where_another_cannot_be_made(tmp_path: Path) -> None:
    """It may be in order, and the reason to refuse it another one."""
    made_once(tmp_path, Maker()).path().write_text("made by hand, refused")

    def full(folder: Path) -> None:
        raise OSError("no space left")

    def refuse(path: Path) -> None:
        raise StartupError("refused")

    with pytest.raises(StartupError, match="no space left"):
        made_once(tmp_path, full).opened(refuse)
    assert files_in(tmp_path) == ["m-1/main", "m-1/other"]


def test_what_is_refused_when_it_is_new_is_made_no_second_time(tmp_path: Path) -> None:
    maker = Maker()

    def refuse(path: Path) -> None:
        raise StartupError("not this model")

    with pytest.raises(StartupError, match="not this model"):
        made_once(tmp_path, maker).opened(refuse)
    assert maker.num_calls == 1
    with pytest.raises(StartupError, match="not this model"):
        made_once(tmp_path, maker).opened(refuse)
    assert maker.num_calls == 2


def test_two_that_make_it_at_once_both_get_a_whole_one(tmp_path: Path) -> None:
    """Each writes into a folder of its own, and the first one stays."""
    both_write = threading.Barrier(2, timeout=30)
    found: list[str] = []

    def make(folder: Path) -> None:
        both_write.wait()
        Maker()(folder)

    threads = [
        threading.Thread(target=lambda: found.append(made_once(tmp_path, make).opened(read_whole)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["made 1", "made 1"]
    assert files_in(tmp_path) == ["m-1/main", "m-1/other"]


def test_drafts_of_killed_processes_go_after_a_day(tmp_path: Path) -> None:
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
    made_once(tmp_path, Maker()).path()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m-1", young.name, foreign.name]


def test_what_cannot_be_made_names_the_engine_that_can_and_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise NotImplementedError("no such\nfold")

    with pytest.raises(
        StartupError, match=r"'m' cannot be folded \(NotImplementedError: no such fold\); use --engine torch"
    ):
        made_once(tmp_path, fail).path()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match=r"'m', folded, cannot be written to .*file.*; set INFINITY_HOME"):
        made_once(tmp_path / "file", Maker()).path()


def test_a_damaged_one_that_cannot_be_replaced_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_once(tmp_path, Maker()).path().write_text("")

    def fail(*given: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(StartupError, match="is damaged"):
        made_once(tmp_path, Maker()).opened(read_whole)


def test_each_model_revision_and_way_of_making_has_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    given = EngineArgs(model_name_or_path="some/model")
    local = ModelFiles(tmp_path, "folder", None)
    names = [
        folder_name(given, local, 1),
        folder_name(given, local, 2),
        folder_name(given, ModelFiles(tmp_path, "hub", "a commit"), 1),
        folder_name(EngineArgs(model_name_or_path="other/model"), local, 1),
        folder_name(EngineArgs(model_name_or_path="some/model", trust_remote_code=True), local, 1),
    ]
    assert folder_name(given, local, 1) == names[0]
    (tmp_path / "config.json").write_text("{ }")
    names.append(folder_name(given, local, 1))
    assert len(set(names)) == 6
    assert names[0].startswith("some-model-")
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path))
    assert tmp_path in folder_of_engine("engine").parents
