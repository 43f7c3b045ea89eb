from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from infinity_emb.config import ServerConfig
from infinity_emb.errors import StartupError
from infinity_emb.server import api_keys
from infinity_emb.server.api_keys import CHECK_INTERVAL_S, ApiKeys

Later = Callable[[float], None]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Later:
    """Lets time pass for the module under test."""
    now_s = 1000.0

    def wait(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    monkeypatch.setattr(api_keys.time, "monotonic", lambda: now_s)
    return wait


def keys_of(path: Path, *keys: str) -> ApiKeys:
    found = ApiKeys.of_config(ServerConfig(api_key=keys, api_key_file=str(path)))
    assert found is not None
    return found


def key_file(folder: Path, text: str, name: str = "keys") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_without_keys_there_is_nothing_to_ask_for() -> None:
    assert ApiKeys.of_config(ServerConfig()) is None
    assert ApiKeys.of_config(ServerConfig(api_key=(" ", ""))) is None


def test_each_line_is_a_key_but_blank_ones_and_comments(tmp_path: Path) -> None:
    keys = keys_of(key_file(tmp_path, "\ufeff# ours\r\none \r\n\n  two\n  # three\nfo#ur\nsesam-öffne"))
    for key in ("one", "two", "fo#ur", "sesam-öffne"):
        assert key.encode() in keys
    for other in ("", "# ours", "three", "# three", "one two", "on", "one ", "ONE", "\ufeff# ours"):
        assert other.encode() not in keys


def test_keys_of_both_sources_count(tmp_path: Path) -> None:
    keys = keys_of(key_file(tmp_path, "of-file"), "first", "second")
    assert all(key in keys for key in (b"first", b"second", b"of-file"))
    assert b"third" not in keys


@pytest.mark.parametrize("place", range(3))
def test_all_keys_are_compared_wherever_the_right_one_stands(
    monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """How long an answer takes must not tell which key is whose; digests hide the lengths too."""
    compared: list[tuple[int, int]] = []
    compare = secrets.compare_digest

    def noting(first: bytes, second: bytes) -> bool:
        compared.append((len(first), len(second)))
        return compare(first, second)

    monkeypatch.setattr(api_keys.secrets, "compare_digest", noting)
    known = ["a", "bb", "c" * 100]
    assert known[place].encode() in ApiKeys(known)
    assert compared == [(32, 32)] * 3


@pytest.mark.parametrize("text", ["", "\n# only a comment\n"])
def test_a_file_without_a_key_stops_the_start(tmp_path: Path, text: str) -> None:
    with pytest.raises(StartupError, match=r"--api-key-file '.*keys' has no key; write one a line"):
        keys_of(key_file(tmp_path, text), "another")


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(StartupError, match=r"--api-key-file '.*' cannot be read: "):
            keys_of(path)


def _rewrite(path: Path) -> None:
    path.write_text("new")


def _rename_over(path: Path) -> None:
    os.replace(key_file(path.parent, "new", "other"), path)


def _rewrite_and_hide_it(path: Path) -> None:
    """The same size and the same time."""
    stat = path.stat()
    path.write_text("new")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", [_rewrite, _rename_over, _rewrite_and_hide_it])
def test_a_changed_file_counts_within_a_second(
    tmp_path: Path, later: Later, change: Callable[[Path], None]
) -> None:
    path = key_file(tmp_path, "old")
    keys = keys_of(path, "fixed")
    change(path)
    later(CHECK_INTERVAL_S)
    assert b"new" in keys
    assert b"fixed" in keys
    assert b"old" not in keys


def test_a_secret_that_kubernetes_replaces_is_read_again(tmp_path: Path, later: Later) -> None:
    """It links the file to a folder, and that to another folder when the secret changes."""
    for version in ("old", "new"):
        (tmp_path / version).mkdir()
        key_file(tmp_path / version, version)
    data = tmp_path / "..data"
    data.symlink_to("old")
    path = tmp_path / "keys"
    path.symlink_to("..data/keys")
    keys = keys_of(path)
    assert b"old" in keys
    other = tmp_path / "..data_tmp"
    other.symlink_to("new")
    os.replace(other, data)
    later(CHECK_INTERVAL_S)
    assert b"new" in keys
    assert b"old" not in keys


def test_the_file_is_looked_at_once_a_second_and_read_when_it_changed(
    tmp_path: Path, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = keys_of(key_file(tmp_path, "key"))
    looks: list[str] = []
    stamp_of = api_keys._stamp_of
    monkeypatch.setattr(api_keys, "_stamp_of", lambda path: looks.append("look") or stamp_of(path))
    monkeypatch.setattr(api_keys, "_read", lambda path: looks.append("read"))
    for _ in range(20):
        assert b"key" in keys
        later(CHECK_INTERVAL_S / 4)
    assert looks == ["look"] * 4


def _remove(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_text("# none\n")


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [_remove, _empty, _make_folder])
def test_a_file_that_became_useless_leaves_its_keys_and_is_told_once(
    tmp_path: Path, later: Later, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    caplog.set_level(logging.INFO, "infinity_emb")
    path = key_file(tmp_path, "secret-old")
    keys = keys_of(path)
    for key in ("secret-old", "secret-new"):
        spoil(path)
        for _ in range(3):
            later(CHECK_INTERVAL_S)
            assert key.encode() in keys
        if path.is_dir():
            path.rmdir()
        key_file(tmp_path, "secret-new")
        later(CHECK_INTERVAL_S)
        assert b"secret-new" in keys
        assert b"secret-old" not in keys
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in told] == ["ERROR", "INFO"] * 2
    assert told[0][1].endswith("the keys that it had still count")
    assert "1 keys" in told[1][1]
    assert "secret" not in caplog.text


def test_a_file_that_was_away_for_a_while_is_not_told_as_an_error_again(
    tmp_path: Path, later: Later, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "infinity_emb")
    path = key_file(tmp_path, "key")
    keys = keys_of(path)
    path.rename(tmp_path / "away")
    later(CHECK_INTERVAL_S)
    assert b"key" in keys
    (tmp_path / "away").rename(path)
    for _ in range(2):
        later(CHECK_INTERVAL_S)
        assert b"key" in keys
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
