"""Check the texts of the package, and read those of a user."""

from __future__ import annotations

import logging
import unicodedata
from pathlib import Path

import pytest

from infinity_emb.backends.sample_texts import load_sample_texts
from infinity_emb.engine.calibration_texts import MAX_TEXT_CHARS, MAX_TEXTS, read_texts
from infinity_emb.errors import StartupError


def test_there_are_about_400_different_texts_of_one_to_120_words() -> None:
    texts = load_sample_texts()
    assert 380 <= len(texts) <= 450
    assert len(set(texts)) == len(texts)
    num_words = [len(text.split()) for text in texts]
    assert max(num_words) <= 120
    assert sum(count == 1 for count in num_words) >= 20
    assert sum(count >= 60 for count in num_words) >= 8


def test_the_texts_are_clean_unicode_in_many_scripts() -> None:
    texts = load_sample_texts()
    for text in texts:
        assert text == text.strip()
        assert all(character.isprintable() or character == "\u200c" for character in text), text
    scripts = {unicodedata.name(letter).split()[0] for text in texts for letter in text if letter.isalpha()}
    assert len(scripts) >= 25
    assert {
        "LATIN",
        "CYRILLIC",
        "GREEK",
        "ARABIC",
        "HEBREW",
        "DEVANAGARI",
        "CJK",
        "HANGUL",
        "THAI",
    } <= scripts
    plain = sum(text.isascii() for text in texts)
    assert 0.4 <= plain / len(texts) <= 0.75


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_bytes("\n".join(lines).encode())
    return path


def make_texts(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


def test_blank_lines_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "texts.txt"
    texts = [*make_texts(98), "naïve 日本", "a\u2028b"]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(["", " ", *texts, "\t", ""]).encode())
    assert read_texts(path) == texts
    assert not caplog.records


@pytest.mark.parametrize("count", [2, 99])
def test_few_texts_log_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int) -> None:
    lines = [*make_texts(count), "text 0", "text 1"]  # the same again counts once
    assert read_texts(write_lines(tmp_path / "few.txt", lines)) == lines
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"has only {count} different texts; with fewer than 100, " in caplog.text


@pytest.mark.parametrize("lines", [[], ["", "  "], ["one"], ["one", "one "]])
def test_fewer_than_two_different_texts_are_refused(tmp_path: Path, lines: list[str]) -> None:
    path = write_lines(tmp_path / "texts.txt", lines)
    with pytest.raises(
        StartupError, match=r"has [01] different texts, at least 2 .* give 100 or more"
    ) as info:
        read_texts(path)
    assert repr(str(path)) in str(info.value)


def test_texts_up_to_the_limits_are_accepted(tmp_path: Path) -> None:
    lines = [*make_texts(MAX_TEXTS - 1), "x" * MAX_TEXT_CHARS]
    assert read_texts(write_lines(tmp_path / "texts.txt", lines)) == lines


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (make_texts(MAX_TEXTS + 1), "has over 10000 texts, the limit; give a random sample"),
        (["x" * (MAX_TEXT_CHARS + 1)], "a line of over 100000 characters, the limit; give one text per line"),
    ],
)
def test_texts_over_the_limits_are_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        read_texts(write_lines(tmp_path / "texts.txt", lines))


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"absent.txt' \(No such file or directory\); give a text file"):
        read_texts(tmp_path / "absent.txt")
    with pytest.raises(StartupError, match=r"cannot read .* \(Is a directory\)"):
        read_texts(tmp_path)
    (tmp_path / "latin1.txt").write_bytes("café\nthé\n".encode("latin-1"))
    with pytest.raises(StartupError, match=r"is not UTF-8 \(.*\); save it in that encoding"):
        read_texts(tmp_path / "latin1.txt")
