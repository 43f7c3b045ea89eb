"""Save and load calibration vectors in real files, and find ranges in them."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import errno
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infinity_emb.engine.calibration_file import MAX_CACHED_RANGES, CalibrationFile, CalibrationKey
from infinity_emb.items import Float32Array

KEY = CalibrationKey(
    model="sentence-transformers/tiny",
    version="abc",
    default_prompt="",
    embedding_dimension=6,
    texts=tuple(f"text {number}" for number in range(20)),
)


def make_vectors(seed: int = 0, *, num_rows: int = 20) -> Float32Array:
    return np.random.default_rng(seed).standard_normal((num_rows, 6), dtype=np.float32)


def test_vectors_are_loaded_as_they_were_saved(tmp_path: Path) -> None:
    rows = make_vectors()
    CalibrationFile(tmp_path / "new" / "folder", KEY).save(rows)
    loaded = CalibrationFile(tmp_path / "new" / "folder", KEY).load()
    assert loaded is not None
    assert loaded.dtype == np.float32
    assert (loaded == rows).all()


def test_a_missing_file_is_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert CalibrationFile(tmp_path / "absent", KEY).load() is None
    assert not caplog.records
    assert not (tmp_path / "absent").exists()


def test_numpy_can_open_the_file(tmp_path: Path) -> None:
    file = CalibrationFile(tmp_path, KEY)
    file.save(make_vectors())
    assert (np.load(file.path, allow_pickle=False) == make_vectors()).all()
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
def test_each_field_of_the_key_changes_the_file(tmp_path: Path, change: dict[str, object]) -> None:
    file = CalibrationFile(tmp_path, KEY)
    file.save(make_vectors())
    other = CalibrationFile(tmp_path, dataclasses.replace(KEY, **change))
    assert other.path != file.path
    assert other.load() is None


def test_every_field_of_the_key_is_in_the_table_above() -> None:
    mark = next(
        each
        for each in test_each_field_of_the_key_changes_the_file.pytestmark  # type: ignore[attr-defined]
        if each.name == "parametrize"
    )
    assert {name for change in mark.args[1] for name in change} == {
        each.name for each in dataclasses.fields(CalibrationKey)
    }


@pytest.mark.parametrize("model", ["/data/my models/é", "..", "", "a" * 500, "C:\\models\\x", "a/../../b"])
def test_any_model_name_results_in_a_file_inside_the_folder(tmp_path: Path, model: str) -> None:
    file = CalibrationFile(tmp_path, dataclasses.replace(KEY, model=model))
    file.save(make_vectors())
    assert list(tmp_path.iterdir()) == [file.path]
    assert file.load() is not None


def corruptions() -> dict[str, Callable[[bytes], bytes]]:
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


@pytest.mark.parametrize("damage", corruptions().values(), ids=corruptions())
def test_a_corrupt_file_is_logged_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    file = CalibrationFile(tmp_path, KEY)
    file.save(make_vectors())
    file.path.write_bytes(damage(file.path.read_bytes()))

    assert CalibrationFile(tmp_path, KEY).load() is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{file.path} is corrupt" in caplog.text
    file.save(make_vectors(1))
    loaded = CalibrationFile(tmp_path, KEY).load()
    assert loaded is not None
    assert (loaded == make_vectors(1)).all()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 673), flip=st.integers(1, 255))
def test_one_wrong_byte_anywhere_is_detected(tmp_path: Path, position: int, flip: int) -> None:
    file = CalibrationFile(tmp_path, KEY)
    file.save(make_vectors())
    content = bytearray(file.path.read_bytes())
    assert len(content) == 674  # 128 of header, 20 * 6 * 4 of vectors, 66 of checksum
    content[position] ^= flip
    file.path.write_bytes(content)
    assert CalibrationFile(tmp_path, KEY).load() is None


def test_a_file_renamed_to_another_key_is_not_valid(tmp_path: Path) -> None:
    """Somebody copied or renamed files; the rows would fit in shape."""
    file = CalibrationFile(tmp_path, KEY)
    file.save(make_vectors())
    other = CalibrationFile(tmp_path, dataclasses.replace(KEY, version="float16"))
    file.path.rename(other.path)
    assert other.load() is None


@pytest.mark.parametrize(
    "rows",
    [
        make_vectors(num_rows=19),
        make_vectors()[:, :5],
        make_vectors().ravel(),
        make_vectors().astype(np.float64),
        np.full((20, 6), np.nan, dtype=np.float32),
    ],
    ids=["too few", "short", "flat", "float64", "nan"],
)
def test_vectors_that_do_not_fit_the_key_are_an_assertion_error(tmp_path: Path, rows: Float32Array) -> None:
    with pytest.raises(AssertionError):
        CalibrationFile(tmp_path, KEY).save(rows)
    assert not list(tmp_path.iterdir())


def test_a_vector_per_token_can_be_saved(tmp_path: Path) -> None:
    rows = make_vectors(num_rows=300)
    CalibrationFile(tmp_path, KEY).save(rows)
    loaded = CalibrationFile(tmp_path, KEY).load()
    assert loaded is not None
    assert loaded.shape == (300, 6)


def save_many_times(folder: Path, seed: int) -> None:
    for _ in range(100):
        CalibrationFile(folder, KEY).save(make_vectors(seed))


def test_concurrent_writers_leave_one_valid_file(tmp_path: Path) -> None:
    """And one that reads meanwhile sees a whole file at any time, of one writer or of the other."""
    CalibrationFile(tmp_path, KEY).save(make_vectors(0))
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
    assert seen <= {make_vectors(seed).tobytes() for seed in (0, 1)}
    assert len(list(tmp_path.iterdir())) == 1


def make_unwritable_folder(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("no folder")
    return tmp_path / "file" / "infinity_emb"


def test_an_unwritable_folder_is_logged_and_the_vectors_stay_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = CalibrationFile(make_unwritable_folder(tmp_path), KEY)
    file.save(make_vectors())

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"cannot write calibration file {file.path}" in caplog.text
    assert "set INFINITY_HOME" in caplog.text
    assert (file.ranges().low == make_vectors().min(axis=0)).all()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_logged_and_the_vectors_stay_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o500)
    file = CalibrationFile(tmp_path, KEY)
    file.save(make_vectors())
    assert "cannot write" in caplog.text
    assert len(file.ranges().low) == 6
    tmp_path.chmod(0o700)


def test_a_full_disk_leaves_the_previous_file_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = CalibrationFile(tmp_path, KEY)
    file.save(make_vectors())

    def write_half(path: Path, content: bytes) -> int:
        with path.open("wb") as half:
            half.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_half)
        file.save(make_vectors(1))
    assert "No space left on device" in caplog.text
    assert list(tmp_path.iterdir()) == [file.path]
    loaded = CalibrationFile(tmp_path, KEY).load()
    assert loaded is not None
    assert (loaded == make_vectors(0)).all()


def test_an_unreadable_file_is_logged_and_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = CalibrationFile(tmp_path, KEY)
    file.path.mkdir()
    assert file.load() is None
    assert f"cannot read calibration file {file.path}" in caplog.text


@pytest.mark.parametrize("dimensions", [None, 1, 4, 6])
def test_ranges_are_those_of_truncated_vectors(tmp_path: Path, dimensions: int | None) -> None:
    rows = make_vectors()
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


def test_the_number_of_cached_ranges_is_bounded(tmp_path: Path) -> None:
    key = dataclasses.replace(KEY, embedding_dimension=500)
    file = CalibrationFile(tmp_path, key)
    file.save(np.random.default_rng(0).standard_normal((20, 500), dtype=np.float32))
    for dimensions in range(1, 501):
        assert len(file.ranges(dimensions).low) == dimensions
    assert file.num_cached_ranges == MAX_CACHED_RANGES


def test_new_vectors_have_new_ranges(tmp_path: Path) -> None:
    file = CalibrationFile(tmp_path, KEY)
    file.save(make_vectors(0))
    file.ranges()
    file.save(make_vectors(1))
    assert (file.ranges().low == make_vectors(1).min(axis=0)).all()


def test_ranges_without_vectors_are_an_assertion_error(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="called before"):
        CalibrationFile(tmp_path, KEY).ranges()


def test_threads_may_request_ranges_concurrently(
    tmp_path: Path, pool: concurrent.futures.ThreadPoolExecutor
) -> None:
    file = CalibrationFile(tmp_path, KEY)
    file.save(make_vectors())
    lows = pool.map(lambda number: file.ranges(number % 6 + 1).low, range(300))
    assert [len(low) for low in lows] == [number % 6 + 1 for number in range(300)]
