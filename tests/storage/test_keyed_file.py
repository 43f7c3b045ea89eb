from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from infinity_emb.storage.keyed_file import KeyedFile, make_keyed_name


def keyed_file(folder: Path) -> KeyedFile:
    return KeyedFile(folder=folder, purpose="answer file", name="org/model", key="all of it", suffix=".txt")


def test_a_value_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = keyed_file(tmp_path / "new" / "folder")
    assert file.read() is None
    file.write(b"42\n")
    file.write(b"43\0")
    assert keyed_file(tmp_path / "new" / "folder").read() == b"43\0"
    assert list(file.path.parent.iterdir()) == [file.path]
    assert file.path.name.startswith("org-model-")
    assert file.path.suffix == ".txt"


def test_another_key_or_name_has_another_file(tmp_path: Path) -> None:
    file = keyed_file(tmp_path)
    file.write(b"42")
    for other in (replace(file, key="something else"), replace(file, name="org/other")):
        assert other.path != file.path
        assert other.read() is None


def test_a_file_of_another_key_under_this_name_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, other = keyed_file(tmp_path), replace(keyed_file(tmp_path), key="something else")
    other.write(b"42")
    other.path.rename(file.path)
    assert file.read() is None
    assert f"answer file {file.path} is corrupt; recomputing" in caplog.text


@pytest.mark.parametrize("position", [0, 1, 2, -1, -2, -66])
def test_one_wrong_byte_anywhere_is_noticed(tmp_path: Path, position: int) -> None:
    file = keyed_file(tmp_path)
    file.write(b"42")
    content = bytearray(file.path.read_bytes())
    content[position] ^= 1
    file.path.write_bytes(content)
    assert file.read() is None


def test_a_folder_that_is_not_writable_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    file = keyed_file(tmp_path / "file" / "folder")
    file.write(b"42")
    assert f"cannot write answer file {file.path} (" in caplog.text
    assert "set INFINITY_HOME to a writable folder" in caplog.text
    assert file.read() is None


@pytest.mark.parametrize("name", ["/data/my models/é", "..", "", "a" * 500, "C:\\models\\x", "a/../../b"])
def test_any_name_makes_a_file_in_the_folder(tmp_path: Path, name: str) -> None:
    file = replace(keyed_file(tmp_path), name=name)
    file.write(b"42")
    assert list(tmp_path.iterdir()) == [file.path]


def test_a_keyed_name_differs_for_each_part_of_the_key() -> None:
    names = {
        make_keyed_name("m"),
        make_keyed_name("m", 1),
        make_keyed_name("m", "1"),
        make_keyed_name("m", 1, 2),
        make_keyed_name("n", 1),
    }
    assert len(names) == 5
    assert make_keyed_name("m", 1) in names
