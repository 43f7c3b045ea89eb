"""Rows computed by Ray Data, next to those of the command."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.errors import StartupError
from infinity_emb.ray_data import ComputeRows, RowSink
from tests.support.bulk_jobs import make_rows, read_bad_rows, read_rows, run_bulk
from tests.support.fake_engines import fake_args

pytestmark = pytest.mark.filterwarnings("default")

DEADLINE_S = 120.0
FAULTS = "fail_on=poison"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of Parquet files; some rows have no text, and some make the model fail."""
    folder = tmp_path / "texts"
    folder.mkdir()
    rows = make_rows(1200)
    for number in range(0, 1200, 100):
        rows[number]["text"] = None
        rows[number + 50]["text"] = "poison"
    for shard in range(4):
        pq.write_table(
            pa.Table.from_pylist(rows[shard * 300 : shard * 300 + 300]), folder / f"{shard}.parquet"
        )
    return folder


def compute(texts: Path, output: Path, *, faults: str = FAULTS, **options: Any) -> RowSink:
    dataset = ray.data.read_parquet(str(texts)).map_batches(
        ComputeRows,
        fn_constructor_kwargs={"model": fake_args(faults), "options": options},
        batch_format="pyarrow",
        batch_size=100,
        concurrency=2,
        num_cpus=0.5,
    )
    sink = RowSink(str(output))
    dataset.write_datasink(sink)
    return sink


def read_reasons(output: Path) -> dict[int, str]:
    """Return the reason for each id of a row that Ray Data has found to be bad."""
    lines = [line for path in output.glob("_bad-*") for line in path.read_text().splitlines()]
    return {error["row"]["id"]: error["reason"] for error in map(json.loads, lines)}


def check_like_the_command(texts: Path, output: Path, sink: RowSink, tmp_path: Path) -> None:
    run_bulk(texts, tmp_path / "command", faults=FAULTS)
    assert sorted(read_rows(output), key=lambda row: row["id"]) == read_rows(tmp_path / "command")
    bad = read_bad_rows(tmp_path / "command")
    assert read_reasons(output) == {row["row"]: row["reason"] for row in bad}
    assert sink.written == (1200 - len(bad), len(bad))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_output_and_bad_rows_are_those_of_the_command(texts: Path, tmp_path: Path) -> None:
    sink = compute(texts, tmp_path / "ray")
    check_like_the_command(texts, tmp_path / "ray", sink, tmp_path)
    expected = pq.read_schema(next((tmp_path / "command").glob("part-*")))
    assert pq.read_schema(next((tmp_path / "ray").glob("part-*"))).equals(expected)


def kill_an_actor() -> int:
    """Wait for an actor that computes, and kill it."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "ComputeRows" in process.cmdline()[0] and process.num_threads() > 1:
                    time.sleep(1)
                    process.kill()
                    return int(process.pid)
        time.sleep(0.1)
    raise TimeoutError("no actor was started")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_killed_actor_loses_and_doubles_no_row(texts: Path, tmp_path: Path) -> None:
    killed: list[int] = []
    killer = threading.Thread(target=lambda: killed.append(kill_an_actor()))
    killer.start()
    sink = compute(texts, tmp_path / "ray", faults=f"{FAULTS}&delay_s=0.1")
    killer.join()
    assert killed
    check_like_the_command(texts, tmp_path / "ray", sink, tmp_path)


def test_rows_without_a_result_stay_in_the_table() -> None:
    compute_rows = ComputeRows(fake_args(FAULTS), options={"text_column": "body", "keep_columns": ["id"]})
    table = compute_rows(pa.table({"id": [1, 2, 3], "body": ["four", None, "poison"]}))
    assert table.column_names == ["id", "embedding", "error"]
    first, second, third = table.to_pylist()
    assert (first["embedding"][0], first["error"]) == (4, None)
    assert (second["embedding"], second["error"]["reason"]) == (None, "column 'body' is missing or null")
    assert third["error"]["content"] == "poison"


def test_scores_are_computed_too() -> None:
    compute_rows = ComputeRows(fake_args("kind=reranker"), "rerank")
    assert compute_rows(pa.table({"query": ["q"], "text": ["a"]})).column("score").to_pylist() == [0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"text_colum": "body"}, "did you mean 'text_column'"), ({"dimensions": "x"}, "must be an integer")],
)
def test_a_wrong_option_is_told_before_a_model_is_loaded(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        ComputeRows(EngineArgs("no such model"), options=options)


def test_a_folder_with_files_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "part-000000.parquet").touch()
    with pytest.raises(StartupError, match="is not empty"):
        RowSink(str(tmp_path))
