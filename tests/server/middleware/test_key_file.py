from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infinity_emb.errors import StartupError
from infinity_emb.server.middleware import key_file
from infinity_emb.server.middleware.key_file import CHECK_INTERVAL_S, MIN_KEY_CHARS, KeyFile, hash_key

Later = Callable[[KeyFile], None]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Later:
    """Lets the time until the next look pass, and looks."""
    now_s = 1000.0

    def wait(keys: KeyFile) -> None:
        nonlocal now_s
        now_s += CHECK_INTERVAL_S
        keys.digests()

    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    return wait


def write(folder: Path, text: str, name: str = "keys") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def has(keys: KeyFile, key: str) -> bool:
    return hash_key(key.encode()) in keys.digests()


def test_each_line_is_a_key_but_blank_ones_and_comments(tmp_path: Path) -> None:
    text = "\ufeff# ours\r\nfirst-key # team a\r\n\n  second-key\t#b#c\n  # third-key\nfo#ur-key\nsesam-öffne"
    keys = KeyFile(str(write(tmp_path, text)))
    for key in ("first-key", "second-key", "fo#ur-key", "sesam-öffne"):
        assert has(keys, key)
    for other in ("", "# ours", "third-key", "# third-key", "first-key # team a", "first-ke", "FIRST-KEY"):
        assert not has(keys, other)


@pytest.mark.parametrize("text", ["", "\n# only a comment\n", "   # 1\n"])
def test_a_file_without_a_key_stops_the_start(tmp_path: Path, text: str) -> None:
    with pytest.raises(StartupError, match=r"--api-key-file '.*keys' has no key; write one per line"):
        KeyFile(str(write(tmp_path, text)))


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(StartupError, match=r"--api-key-file '.*' cannot be read: "):
            KeyFile(str(path))


def test_a_short_key_stops_the_start(tmp_path: Path) -> None:
    path = write(tmp_path, f"long-enough\n{'x' * (MIN_KEY_CHARS - 1)} # {'y' * 20}\n")
    with pytest.raises(StartupError, match=r"has a key of less than 8 characters in line 2$"):
        KeyFile(str(path))
    assert has(KeyFile(str(write(tmp_path, "x" * MIN_KEY_CHARS))), "x" * MIN_KEY_CHARS)


def _rewrite(path: Path) -> None:
    path.write_text("new-key-1")


def _rename_over(path: Path) -> None:
    os.replace(write(path.parent, "new-key-1", "other"), path)


def _rewrite_and_hide_it(path: Path) -> None:
    """The same size and the same time."""
    stat = path.stat()
    path.write_text("new-key-1")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


CHANGES = [_rewrite, _rename_over, _rewrite_and_hide_it]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_counts_once_two_looks_agree(
    tmp_path: Path, later: Later, change: Callable[[Path], None]
) -> None:
    path = write(tmp_path, "old-key-1")
    keys = KeyFile(str(path))
    change(path)
    later(keys)
    assert has(keys, "old-key-1")
    later(keys)
    assert has(keys, "new-key-1")
    assert not has(keys, "old-key-1")


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_is_a_while_old_counts_at_the_first_look(
    tmp_path: Path, later: Later, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks are made when requests come, which may be rare."""
    path = write(tmp_path, "old-key-1")
    keys = KeyFile(str(path))
    change(path)
    an_hour_later_ns = time.time_ns() + 3600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: an_hour_later_ns)
    later(keys)
    assert has(keys, "new-key-1")


def test_a_key_that_is_half_written_is_never_valid(tmp_path: Path, later: Later) -> None:
    """`sec` of `secondkey` let everybody in who knew three letters."""
    path = write(tmp_path, "first-key-of-ours")
    keys = KeyFile(str(path))
    for written in ("", "sec", "second-key-o", "second-key-of-ours"):
        path.write_text(written)
        later(keys)
        assert has(keys, "first-key-of-ours")
        assert not has(keys, written)
    later(keys)
    assert has(keys, "second-key-of-ours")


def test_a_change_while_the_file_is_read_is_not_taken(
    tmp_path: Path, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "old-key-1")
    keys = KeyFile(str(path))
    path.write_text("new-key-1-and-more")
    later(keys)
    read = KeyFile._read

    def read_while_written(self: KeyFile) -> frozenset[bytes]:
        path.write_text("new-key-1")
        digests = read(self)
        path.write_text("new-key-1-and-more")
        return digests

    monkeypatch.setattr(KeyFile, "_read", read_while_written)
    later(keys)
    assert has(keys, "old-key-1")
    monkeypatch.setattr(KeyFile, "_read", read)
    later(keys)
    later(keys)
    assert has(keys, "new-key-1-and-more")
    assert not has(keys, "new-key-1")


def test_a_secret_that_kubernetes_replaces_is_read_again(tmp_path: Path, later: Later) -> None:
    """It links the file to a folder, and that to another folder when the secret changes."""
    for version in ("old", "new"):
        (tmp_path / version).mkdir()
        write(tmp_path / version, f"{version}-key-1")
    data = tmp_path / "..data"
    data.symlink_to("old")
    path = tmp_path / "keys"
    path.symlink_to("..data/keys")
    keys = KeyFile(str(path))
    assert has(keys, "old-key-1")
    other = tmp_path / "..data_tmp"
    other.symlink_to("new")
    os.replace(other, data)
    later(keys)
    later(keys)
    assert has(keys, "new-key-1")
    assert not has(keys, "old-key-1")


def test_the_file_is_looked_at_once_a_second_and_read_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    keys = KeyFile(str(write(tmp_path, "some-key")))
    looks: list[str] = []
    read_stamp = key_file.read_stamp

    def noting(path: str) -> key_file.Stamp:
        looks.append("look")
        return read_stamp(path)

    monkeypatch.setattr(key_file, "read_stamp", noting)
    monkeypatch.setattr(KeyFile, "_read", lambda _: looks.append("read"))
    for _ in range(20):
        assert has(keys, "some-key")
        now_s += CHECK_INTERVAL_S / 4
    assert looks == ["look"] * 4


def _remove(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_text("# none\n")


def _shorten(path: Path) -> None:
    path.write_text("secret-new\nshort\n")


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [_remove, _empty, _shorten, _make_folder])
def test_a_file_that_became_useless_leaves_its_keys_and_is_told_once(
    tmp_path: Path, later: Later, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    caplog.set_level(logging.INFO, "infinity_emb")
    path = write(tmp_path, "secret-old")
    keys = KeyFile(str(path))
    for key in ("secret-old", "secret-new"):
        spoil(path)
        for _ in range(4):
            later(keys)
            assert has(keys, key)
        if path.is_dir():
            path.rmdir()
        write(tmp_path, "secret-new")
        for _ in range(2):
            later(keys)
        assert has(keys, "secret-new")
        assert not has(keys, "secret-old")
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in told] == ["ERROR", "INFO"] * 2
    assert told[0][1].endswith("the previous keys stay valid")
    assert "1 keys" in told[1][1]
    assert "secret" not in caplog.text


def test_a_file_that_was_away_for_a_while_is_not_told_as_an_error_again(
    tmp_path: Path, later: Later, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "infinity_emb")
    path = write(tmp_path, "some-key")
    keys = KeyFile(str(path))
    path.rename(tmp_path / "away")
    for _ in range(3):
        later(keys)
        assert has(keys, "some-key")
    (tmp_path / "away").rename(path)
    for _ in range(3):
        later(keys)
        assert has(keys, "some-key")
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
