"""Lance datasets, in an environment of their own with pylance."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest

from infinity_emb.errors import StartupError
from tests.bulk.test_resume import ROWS, check_every_kill
from tests.clients.environments import python_of
from tests.support.bulk_jobs import (
    list_lengths,
    make_rows,
    read_bad_rows,
    read_rows,
    run_bulk,
    write_lines,
    write_table,
)

HAS_LANCE = importlib.util.find_spec("lance") is not None
needs_lance = pytest.mark.skipif(
    not HAS_LANCE, reason="pylance is not installed here; another test runs this where it is"
)


@pytest.mark.network
@pytest.mark.skipif(HAS_LANCE, reason="this is that environment")
def test_the_others_pass_where_pylance_is_installed() -> None:
    command = [python_of("lance"), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


@pytest.mark.skipif(HAS_LANCE, reason="pylance is installed")
def test_a_missing_package_is_named(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"text": "a"}])
    with pytest.raises(StartupError, match="pip install pylance"):
        run_bulk(source, tmp_path / "out.lance")


@needs_lance
def test_a_dataset_has_the_rows_and_types_of_the_parquet_file(tmp_path: Path) -> None:
    source = write_table(tmp_path / "in.parquet", pa.Table.from_pylist(make_rows(300)))
    for name in ("out.lance", "out.parquet"):
        run_bulk(source, tmp_path / name)
    rows = read_rows(tmp_path / "out.lance")
    assert rows == read_rows(tmp_path / "out.parquet")
    assert list_lengths(rows) == [len(row["text"]) for row in rows]
    import lance

    vectors = lance.dataset(str(tmp_path / "out.lance")).schema.field("embedding").type
    assert (vectors.value_type, vectors.list_size > 1) == (pa.float32(), True)


@needs_lance
@pytest.mark.parametrize("dtype", ["float16", "int8", "ubinary"])
def test_vectors_of_other_types_are_kept(tmp_path: Path, dtype: str) -> None:
    source = write_lines(tmp_path / "in.jsonl", make_rows(20))
    for name in ("out.lance", "out.parquet"):
        run_bulk(source, tmp_path / name, model={"embedding_dtype": dtype})
    assert read_rows(tmp_path / "out.lance") == read_rows(tmp_path / "out.parquet")


@needs_lance
def test_labels_are_kept(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", make_rows(20))
    for name in ("out.lance", "out.parquet"):
        run_bulk(source, tmp_path / name, task="classify", faults="kind=classifier")
    assert read_rows(tmp_path / "out.lance") == read_rows(tmp_path / "out.parquet")


@needs_lance
@pytest.mark.usefixtures("small_windows")
def test_a_job_killed_at_any_change_of_the_disk_loses_and_repeats_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_every_kill(tmp_path, monkeypatch, "out.lance", {})


@needs_lance
@pytest.mark.usefixtures("small_windows")
def test_a_folder_gets_a_dataset_per_shard(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", ROWS)
    run_bulk(source, tmp_path / "out", rows_per_shard=20, output_format="lance")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "_bad.jsonl", "part-00000.lance", "part-00001.lance"
    ]  # fmt: skip
    assert [row["id"] for row in read_rows(tmp_path / "out")] == [
        row["id"] for row in ROWS if row["text"] is not None
    ]
    assert len(read_bad_rows(tmp_path / "out")) == 2


@needs_lance
def test_overwrite_replaces_a_dataset_and_nothing_else(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", make_rows(3))
    run_bulk(source, tmp_path / "out.lance")
    with pytest.raises(StartupError, match=r"out\.lance exists"):
        run_bulk(source, tmp_path / "out.lance")
    write_lines(source, make_rows(2))
    run_bulk(source, tmp_path / "out.lance", overwrite=True)
    assert len(read_rows(tmp_path / "out.lance")) == 2
    folder = tmp_path / "mine.lance"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(StartupError, match="not a Lance dataset"):
        run_bulk(source, folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"


@needs_lance
def test_columns_that_a_dataset_cannot_have_are_told_before_anything_is_computed(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"text": "a", "meta.id": 1}])
    with pytest.raises(StartupError, match=r"cannot have these columns.*meta\.id.*--keep-columns"):
        run_bulk(source, tmp_path / "out.lance")
    run_bulk(source, tmp_path / "out.lance", keep_columns=["text"])
    assert len(read_rows(tmp_path / "out.lance")) == 1
