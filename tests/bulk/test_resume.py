"""Stop a job at any point, and run it again: its output is that of a job that was never stopped."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infinity_emb.bulk import journal as journals
from infinity_emb.errors import StartupError
from tests.support.bulk_jobs import (
    make_rows,
    read_bad_rows,
    read_rows,
    run_bulk,
    write_lines,
    write_table,
)


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the package catches it."""


class Killer:
    """Kill a job at a point: there is one before and one after each change of the disk.

    stop_at: the number of the point, from 1; 0 for none.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stop_at = self.num_points = 0
        monkeypatch.setattr(os, "replace", self._wrap(os.replace))
        monkeypatch.setattr(Path, "unlink", self._wrap(Path.unlink))
        monkeypatch.setattr(Path, "mkdir", self._wrap(Path.mkdir))

    def _wrap(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._pass_point()
            result = change(*args, **kwargs)
            self._pass_point()
            return result

        return call

    def _pass_point(self) -> None:
        self.num_points += 1
        if self.num_points == self.stop_at:
            raise Killed


ROWS = [row | ({"text": None} if row["id"] % 11 == 5 else {}) for row in make_rows(25)]


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize(
    ("output_name", "options"),
    [("out.parquet", {}), ("out.npy", {}), ("out", {"rows_per_shard": 20, "output_format": "jsonl"})],
)
def test_a_job_killed_at_any_change_of_the_disk_and_continued_loses_and_repeats_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output_name: str, options: dict[str, Any]
) -> None:
    check_every_kill(tmp_path, monkeypatch, output_name, options)


def check_every_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output_name: str, options: dict[str, Any]
) -> None:
    """Kill a job at each of its points in turn, and compare what the same command then makes of it."""
    source = write_lines(tmp_path / "in.jsonl", ROWS)
    undisturbed, killed = tmp_path / "a" / output_name, tmp_path / "b" / output_name
    undisturbed.parent.mkdir()
    killed.parent.mkdir()
    killer = Killer(monkeypatch)
    run_bulk(source, undisturbed, **options)
    num_points = killer.num_points
    assert num_points > 20
    for point in range(1, num_points + 1):
        killer.stop_at, killer.num_points = point, 0
        with pytest.raises(Killed):
            run_bulk(source, killed, **options)
        killer.stop_at = 0
        has_ended = not any(killed.parent.glob("**/manifest.json")) and killed.exists()
        run_bulk(source, killed, overwrite=has_ended, **options)
        assert read_rows(killed) == read_rows(undisturbed), f"stopped at point {point}"
        assert read_bad_rows(killed) == read_bad_rows(undisturbed), f"stopped at point {point}"
        assert _list_names(killed.parent) == _list_names(undisturbed.parent)
        for path in sorted(killed.parent.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()


def _list_names(folder: Path) -> set[str]:
    """Return the paths below a folder, without what pylance names at random."""
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    return {str(path) for path in paths if not any(each.suffix == ".lance" for each in path.parents)}


def begin(source: Path, output: Path, **options: Any) -> None:
    """Run a job until it has committed some windows, and stop it."""
    with pytest.raises(StartupError, match="told to stop"):
        run_bulk(source, output, **options)


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Lets jobs stop after two windows, until it is called with False."""
    state = {"is_on": True, "count": 0}
    write_part = journals.Journal.write_part

    def write(*args: Any) -> None:
        state["count"] += 1
        if state["is_on"] and state["count"] > 2:
            raise StartupError("told to stop")
        write_part(*args)

    monkeypatch.setattr(journals.Journal, "write_part", write)
    return lambda is_on: state.update(is_on=is_on, count=0)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("name", ["in.parquet", "in.arrow", "in.arrows", "in.csv", "in.txt"])
def test_every_format_is_read_on_from_any_row(
    tmp_path: Path, stops: Callable[[bool], None], name: str
) -> None:
    source, rows = tmp_path / name, make_rows(155)
    if name.endswith(("csv", "txt")):
        source.write_text("\n".join(["text"] * (name == "in.csv") + [row["text"] for row in rows]))
    else:
        write_table(source, pa.Table.from_pylist(rows))
    for _ in range(6):
        begin(source, tmp_path / "out.jsonl")
        stops(True)
    stops(False)
    run_bulk(source, tmp_path / "out.jsonl")
    assert [row["text"] for row in read_rows(tmp_path / "out.jsonl")] == [row["text"] for row in rows]


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dimensions": 5}, "another task: .*'dimensions': None.*now .*'dimensions': 5"),
        ({"text_column": "id2"}, "another columns"),
        ({"model": {"embedding_dtype": "float16"}}, "another embedding dtype: 'float32', now 'float16'"),
        ({"faults": "kind=embedder"}, "another model: 'debug\\?', now 'debug\\?kind=embedder'"),
        ({"prompt": "x"}, "another task"),
    ],
)
def test_a_changed_option_is_refused_by_its_name(
    tmp_path: Path, stops: Callable[[bool], None], changed: dict[str, Any], message: str
) -> None:
    rows = [{**row, "id2": "x"} for row in make_rows(60)]
    source = write_lines(tmp_path / "in.jsonl", rows)
    begin(source, tmp_path / "out.jsonl")
    stops(False)
    with pytest.raises(StartupError, match=message):
        run_bulk(source, tmp_path / "out.jsonl", **changed)
    run_bulk(source, tmp_path / "out.jsonl", concurrency=2)
    assert [row["id"] for row in read_rows(tmp_path / "out.jsonl")] == list(range(60))


@pytest.mark.usefixtures("small_windows")
def test_a_changed_input_is_refused_and_overwrite_starts_again(
    tmp_path: Path, stops: Callable[[bool], None]
) -> None:
    source = write_lines(tmp_path / "in.jsonl", make_rows(60))
    begin(source, tmp_path / "out.jsonl")
    stops(False)
    write_lines(source, make_rows(61))
    with pytest.raises(
        StartupError, match=r"out\.jsonl was begun with another input: .*in\.jsonl.*--overwrite"
    ):
        run_bulk(source, tmp_path / "out.jsonl")
    run_bulk(source, tmp_path / "out.jsonl", overwrite=True)
    assert [row["id"] for row in read_rows(tmp_path / "out.jsonl")] == list(range(61))


@pytest.mark.usefixtures("small_windows")
def test_only_one_process_writes_an_output(tmp_path: Path, stops: Callable[[bool], None]) -> None:
    source = write_lines(tmp_path / "in.jsonl", make_rows(60))
    begin(source, tmp_path / "out.jsonl")
    stops(False)
    journal = journals.Journal(journals.Layout(tmp_path / "out.jsonl", None))
    journal._acquire_lock()
    with pytest.raises(StartupError, match="another process is writing"):
        run_bulk(source, tmp_path / "out.jsonl")
    journal.close()
    run_bulk(source, tmp_path / "out.jsonl")


def test_an_output_that_exists_is_replaced_on_demand_only(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", make_rows(3))
    for output in (tmp_path / "out.jsonl", tmp_path / "folder"):
        run_bulk(source, output)
        with pytest.raises(StartupError, match="exists; give another output, or --overwrite"):
            run_bulk(source, output)
        run_bulk(source, output, overwrite=True)
        assert len(read_rows(output)) == 3


def test_a_full_disk_stops_the_job_and_leaves_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_lines(tmp_path / "in.jsonl", make_rows(3))

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StartupError, match=r"cannot write .*No space left.*run the same command again"):
            run_bulk(source, tmp_path / "out.jsonl")
    assert not list(tmp_path.rglob("*.draft"))
    run_bulk(source, tmp_path / "out.jsonl")
    assert len(read_rows(tmp_path / "out.jsonl")) == 3
