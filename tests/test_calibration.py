"""The file is a real one in a temporary folder; the quality of the texts is measured on the bundled model."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import errno
import logging
import multiprocessing
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infinity_emb import calibration
from infinity_emb.backends.base import Rows
from infinity_emb.calibration import (
    MAX_TEXT_CHARS,
    MAX_TEXTS,
    CalibrationFile,
    CalibrationKey,
    calibration_texts,
    read_texts,
)
from infinity_emb.errors import StartupError
from infinity_emb.postprocess import find_ranges, quantize_rows, shorten_rows
from infinity_emb.primitives import EmbeddingDtype

KEY = CalibrationKey(
    model="sentence-transformers/tiny",
    version="abc",
    default_prompt="",
    embedding_dimension=6,
    texts=tuple(f"text {number}" for number in range(20)),
)


def some_rows(seed: int = 0, *, num_rows: int = 20) -> Rows:
    return np.random.default_rng(seed).standard_normal((num_rows, 6), dtype=np.float32)


# The texts of the package


def test_the_texts_are_about_400_different_lines_of_one_to_120_words() -> None:
    texts = calibration_texts()
    assert 380 <= len(texts) <= 450
    assert len(set(texts)) == len(texts)
    num_words = [len(text.split()) for text in texts]
    assert max(num_words) <= 120
    assert sum(count == 1 for count in num_words) >= 20
    assert sum(count >= 60 for count in num_words) >= 8


def test_the_texts_are_clean_unicode_in_many_scripts() -> None:
    texts = calibration_texts()
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


# The file


def test_rows_come_back_from_the_file_as_they_were(tmp_path: Path) -> None:
    rows = some_rows()
    CalibrationFile(tmp_path / "new" / "folder", KEY).save(rows)
    loaded = CalibrationFile(tmp_path / "new" / "folder", KEY).load()
    assert loaded is not None
    assert loaded.dtype == np.float32
    assert (loaded == rows).all()


def test_before_the_first_save_there_is_nothing_and_nothing_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert CalibrationFile(tmp_path / "absent", KEY).load() is None
    assert not caplog.records
    assert not (tmp_path / "absent").exists()


def test_the_file_is_an_array_that_numpy_opens_by_itself(tmp_path: Path) -> None:
    file = CalibrationFile(tmp_path, KEY)
    file.save(some_rows())
    assert (np.load(file.path, allow_pickle=False) == some_rows()).all()
    assert file.path.name.startswith("sentence-transformers-tiny-")
    assert list(tmp_path.iterdir()) == [file.path]


@pytest.mark.parametrize(
    "change",
    [
        {"model": "sentence-transformers/other"},
        {"version": "abd"},
        {"default_prompt": "query: "},
        {"embedding_dimension": 7},
        {"texts": KEY.texts[:-1]},
        {"texts": KEY.texts[::-1]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_the_rows_changes_the_file(tmp_path: Path, change: dict[str, object]) -> None:
    file = CalibrationFile(tmp_path, KEY)
    file.save(some_rows())
    other = CalibrationFile(tmp_path, dataclasses.replace(KEY, **change))  # type: ignore[arg-type]
    assert other.path != file.path
    assert other.load() is None


def test_every_field_of_the_key_is_in_the_table_above() -> None:
    mark = next(
        each
        for each in test_whatever_changes_the_rows_changes_the_file.pytestmark  # type: ignore[attr-defined]
        if each.name == "parametrize"
    )
    assert {name for change in mark.args[1] for name in change} == {
        each.name for each in dataclasses.fields(CalibrationKey)
    }


@pytest.mark.parametrize("model", ["/data/my models/é", "..", "", "a" * 500, "C:\\models\\x", "a/../../b"])
def test_any_model_name_makes_a_file_inside_the_folder(tmp_path: Path, model: str) -> None:
    file = CalibrationFile(tmp_path, dataclasses.replace(KEY, model=model))
    file.save(some_rows())
    assert list(tmp_path.iterdir()) == [file.path]
    assert file.load() is not None


def damaged_files() -> dict[str, Callable[[bytes], bytes]]:
    return {
        "empty": lambda content: b"",
        "shorter than a checksum": lambda content: content[:10],
        "cut": lambda content: content[:-100],
        "one byte short": lambda content: content[:-1],
        "one byte more": lambda content: content + b"\0",
        "zeros": lambda content: bytes(len(content)),
        "text": lambda content: b"<html>not found</html>" * 30,
        "no checksum": lambda content: content[:-32],
    }


@pytest.mark.parametrize("damage", damaged_files().values(), ids=damaged_files())
def test_a_damaged_file_is_left_out_with_a_line_in_the_log_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    file = CalibrationFile(tmp_path, KEY)
    file.save(some_rows())
    file.path.write_bytes(damage(file.path.read_bytes()))

    assert CalibrationFile(tmp_path, KEY).load() is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{file.path} is damaged" in caplog.text
    file.save(some_rows(1))
    loaded = CalibrationFile(tmp_path, KEY).load()
    assert loaded is not None
    assert (loaded == some_rows(1)).all()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 639), flip=st.integers(1, 255))
def test_one_wrong_byte_anywhere_is_noticed(tmp_path: Path, position: int, flip: int) -> None:
    file = CalibrationFile(tmp_path, KEY)
    file.save(some_rows())
    content = bytearray(file.path.read_bytes())
    assert len(content) == 640  # 128 of header, 20 * 6 * 4 of rows, 32 of checksum
    content[position] ^= flip
    file.path.write_bytes(content)
    assert CalibrationFile(tmp_path, KEY).load() is None


def test_a_file_under_another_keys_name_is_not_taken_for_that_keys(tmp_path: Path) -> None:
    """Somebody copied or renamed files; the rows would fit in shape."""
    file = CalibrationFile(tmp_path, KEY)
    file.save(some_rows())
    other = CalibrationFile(tmp_path, dataclasses.replace(KEY, version="float16"))
    file.path.rename(other.path)
    assert other.load() is None


@pytest.mark.parametrize(
    "rows",
    [
        some_rows(num_rows=19),
        some_rows()[:, :5],
        some_rows().ravel(),
        some_rows().astype(np.float64),
        np.full((20, 6), np.nan, dtype=np.float32),
    ],
    ids=["too few", "short", "flat", "float64", "nan"],
)
def test_rows_that_are_not_those_of_the_key_are_our_own_mistake(tmp_path: Path, rows: Rows) -> None:
    with pytest.raises(AssertionError):
        CalibrationFile(tmp_path, KEY).save(rows)
    assert not list(tmp_path.iterdir())


def test_a_row_per_token_is_kept_too(tmp_path: Path) -> None:
    rows = some_rows(num_rows=300)
    CalibrationFile(tmp_path, KEY).save(rows)
    loaded = CalibrationFile(tmp_path, KEY).load()
    assert loaded is not None
    assert loaded.shape == (300, 6)


def save_many_times(folder: Path, seed: int) -> None:
    for _ in range(100):
        CalibrationFile(folder, KEY).save(some_rows(seed))


def test_processes_that_write_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    """And one that reads meanwhile sees a whole file at any time, of one writer or of the other."""
    CalibrationFile(tmp_path, KEY).save(some_rows(0))
    writers = [
        multiprocessing.get_context("spawn").Process(target=save_many_times, args=(tmp_path, seed))
        for seed in (0, 1)
    ]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        rows = CalibrationFile(tmp_path, KEY).load()
        assert rows is not None
        seen.add(rows.tobytes())
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen <= {some_rows(seed).tobytes() for seed in (0, 1)}
    assert len(list(tmp_path.iterdir())) == 1


def a_folder_that_is_a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("no folder")
    return tmp_path / "file" / "infinity_emb"


def test_a_folder_that_cannot_be_written_is_logged_and_the_rows_serve_from_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = CalibrationFile(a_folder_that_is_a_file(tmp_path), KEY)
    file.save(some_rows())

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"cannot write the calibration file {file.path}" in caplog.text
    assert "set INFINITY_HOME" in caplog.text
    assert (file.ranges().low == some_rows().min(axis=0)).all()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_logged_and_the_rows_serve_from_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o500)
    file = CalibrationFile(tmp_path, KEY)
    file.save(some_rows())
    assert "cannot write" in caplog.text
    assert len(file.ranges().low) == 6
    tmp_path.chmod(0o700)


def test_a_full_disk_leaves_no_draft_and_the_file_that_was_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = CalibrationFile(tmp_path, KEY)
    file.save(some_rows())

    def write_half(path: Path, content: bytes) -> int:
        with path.open("wb") as half:
            half.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_half)
        file.save(some_rows(1))
    assert "No space left on device" in caplog.text
    assert list(tmp_path.iterdir()) == [file.path]
    loaded = CalibrationFile(tmp_path, KEY).load()
    assert loaded is not None
    assert (loaded == some_rows(0)).all()


def test_a_file_that_cannot_be_read_is_logged_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = CalibrationFile(tmp_path, KEY)
    file.path.mkdir()
    assert file.load() is None
    assert f"cannot read the calibration file {file.path}" in caplog.text


# Ranges


@pytest.mark.parametrize("dimensions", [None, 1, 4, 6])
def test_ranges_are_those_of_rows_shortened_alike(tmp_path: Path, dimensions: int | None) -> None:
    rows = some_rows()
    CalibrationFile(tmp_path, KEY).save(rows)
    file = CalibrationFile(tmp_path, KEY)
    file.load()

    ranges = file.ranges(dimensions)
    short = rows
    if dimensions not in (None, 6):
        short = rows[:, :dimensions] / np.linalg.norm(rows[:, :dimensions], axis=1, keepdims=True)
    assert np.allclose(ranges.low, short.min(axis=0), atol=1e-6)
    assert np.allclose(ranges.high, short.max(axis=0), atol=1e-6)
    assert file.ranges(dimensions) is ranges


def test_what_is_remembered_of_ranges_is_bounded(tmp_path: Path) -> None:
    key = dataclasses.replace(KEY, embedding_dimension=500)
    file = CalibrationFile(tmp_path, key)
    file.save(np.random.default_rng(0).standard_normal((20, 500), dtype=np.float32))
    for dimensions in range(1, 501):
        assert len(file.ranges(dimensions).low) == dimensions
    assert file._remembered_ranges.cache_info().currsize == calibration._NUM_REMEMBERED_RANGES


def test_new_rows_make_new_ranges(tmp_path: Path) -> None:
    file = CalibrationFile(tmp_path, KEY)
    file.save(some_rows(0))
    file.ranges()
    file.save(some_rows(1))
    assert (file.ranges().low == some_rows(1).min(axis=0)).all()


def test_ranges_before_there_are_rows_are_our_own_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="before there are rows"):
        CalibrationFile(tmp_path, KEY).ranges()


def test_threads_may_ask_for_ranges_at_once(
    tmp_path: Path, pool: concurrent.futures.ThreadPoolExecutor
) -> None:
    file = CalibrationFile(tmp_path, KEY)
    file.save(some_rows())
    lows = pool.map(lambda number: file.ranges(number % 6 + 1).low, range(300))
    assert [len(low) for low in lows] == [number % 6 + 1 for number in range(300)]


# A user's own texts


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_bytes("\n".join(lines).encode())
    return path


def many(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


def test_texts_are_the_lines_without_blank_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "texts.txt"
    texts = [*many(98), "naïve 日本", "a\u2028b"]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(["", " ", *texts, "\t", ""]).encode())
    assert read_texts(path) == texts
    assert not caplog.records


@pytest.mark.parametrize("count", [2, 99])
def test_few_texts_are_taken_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    lines = [*many(count), "text 0", "text 1"]  # the same again counts once
    assert read_texts(write_lines(tmp_path / "few.txt", lines)) == lines
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"holds {count} different texts; with fewer than 100 " in caplog.text


@pytest.mark.parametrize("lines", [[], ["", "  "], ["one"], ["one", "one "]])
def test_texts_that_give_no_ranges_are_refused(tmp_path: Path, lines: list[str]) -> None:
    path = write_lines(tmp_path / "texts.txt", lines)
    with pytest.raises(
        StartupError, match=r"holds [01] different texts, at least 2 .* give 100 or more"
    ) as info:
        read_texts(path)
    assert repr(str(path)) in str(info.value)


def test_as_many_and_as_long_texts_as_the_limits_say_are_taken(tmp_path: Path) -> None:
    lines = [*many(MAX_TEXTS - 1), "x" * MAX_TEXT_CHARS]
    assert read_texts(write_lines(tmp_path / "texts.txt", lines)) == lines


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (many(MAX_TEXTS + 1), "holds over 10000 texts, the limit; give a random sample"),
        (["x" * (MAX_TEXT_CHARS + 1)], "a line of over 100000 characters, the limit; give one text a line"),
    ],
)
def test_more_texts_and_longer_ones_are_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        read_texts(write_lines(tmp_path / "texts.txt", lines))


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"absent.txt' \(No such file or directory\); give a text file"):
        read_texts(tmp_path / "absent.txt")
    with pytest.raises(StartupError, match=r"cannot read .* \(Is a directory\)"):
        read_texts(tmp_path)
    (tmp_path / "latin1.txt").write_bytes("café\nthé\n".encode("latin-1"))
    with pytest.raises(StartupError, match=r"is not UTF-8 \(.*\); save it in that encoding"):
        read_texts(tmp_path / "latin1.txt")


# What the texts are good for


Scores = npt.NDArray[np.float64]


class Encoded(NamedTuple):
    calibration: Rows
    others: Rows  # of texts that the ranges have not seen


@pytest.fixture(scope="module")
def encoded() -> Encoded:
    from pydoc_data.topics import topics  # the manual of Python, which comes with it

    from sentence_transformers import SentenceTransformer

    from benchmarks.texts import bundled_model_folder

    model = SentenceTransformer(str(bundled_model_folder()), device="cpu")
    paragraphs = [
        part for topic in topics.values() for part in topic.split("\n\n") if 8 < len(part.split()) < 80
    ]
    others = paragraphs[:: len(paragraphs) // 150]
    return Encoded(
        model.encode(calibration_texts(), show_progress_bar=False),
        model.encode(others, show_progress_bar=False),
    )


def cosines(rows: npt.NDArray[np.generic]) -> Scores:
    """(N, N - 1): each row with all others."""
    unit = rows.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    scores = unit @ unit.T
    return scores[~np.eye(len(rows), dtype=bool)].reshape(len(rows), -1)


def rank_correlations(scores: Scores, others: Scores) -> Scores:
    """Spearman's, row by row: 1 where both sort the neighbours alike."""
    ranks = [each.argsort(axis=1).argsort(axis=1) for each in (scores, others)]
    return np.array([np.corrcoef(*pair)[0, 1] for pair in zip(*ranks, strict=True)])


@pytest.mark.model
@pytest.mark.parametrize("dimensions", [None, 128, 64])
def test_few_values_of_other_texts_lie_outside_the_ranges(
    encoded: Encoded, tmp_path: Path, dimensions: int | None
) -> None:
    """Of N random texts, the extremes of a dimension leave out 2 in N + 1 values of another such text.

    The ranges of full vectors would leave out a quarter of the values at 64 dimensions, as short rows are
    scaled up.
    """
    ranges = find_ranges(shorten_rows(encoded.calibration, dimensions))
    rows = shorten_rows(encoded.others, dimensions)
    assert ((rows < ranges.low) | (rows > ranges.high)).mean() <= 0.01
    if dimensions == 64:
        full = find_ranges(encoded.calibration)
        assert ((rows < full.low[:64]) | (rows > full.high[:64])).mean() >= 0.2


@pytest.mark.model
@pytest.mark.parametrize("dimensions", [None, 128, 64])
@pytest.mark.parametrize("texts", ["calibration", "others"])
def test_quantised_vectors_have_the_neighbours_of_float32(
    encoded: Encoded, dimensions: int | None, texts: str
) -> None:
    """Mapped back with the ranges almost exactly; as bare numbers, where each dimension has a scale and an
    origin of its own, roughly: that is the format, sentence-transformers' numbers are the same."""
    ranges = find_ranges(shorten_rows(encoded.calibration, dimensions))
    rows = shorten_rows(getattr(encoded, texts), dimensions)
    expected = cosines(rows)
    numbers = quantize_rows(rows, EmbeddingDtype.uint8, ranges)
    restored = ranges.low + (numbers + np.float32(0.5)) * (ranges.high - ranges.low) / 255

    correlations = rank_correlations(cosines(restored), expected)
    assert correlations.mean() >= 0.999
    assert correlations.min() >= 0.99
    for dtype, mean in [
        (EmbeddingDtype.int8, 0.85),
        (EmbeddingDtype.uint8, 0.9),
        (EmbeddingDtype.float16, 0.9999),
    ]:
        assert rank_correlations(cosines(quantize_rows(rows, dtype, ranges)), expected).mean() >= mean
