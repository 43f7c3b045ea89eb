"""Run bulk jobs with the fake engine in this process, and read what they have written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infinity_emb.bulk.job import Summary
from infinity_emb.bulk.run import plan_job, run_job
from infinity_emb.bulk.tasks import Task
from infinity_emb.config.bulk_options import BulkOptions
from tests.support.fake_engines import fake_args

Row = dict[str, Any]


def run_bulk(
    inputs: Path | str | Sequence[Path | str],
    output: Path | str,
    *,
    task: Task = "embed",
    faults: str = "",
    model: Mapping[str, Any] | None = None,
    **options: Any,
) -> Summary:
    """Run a job; `faults` are those of the fake engine, and `model` has options of it."""
    paths = [inputs] if isinstance(inputs, (Path, str)) else inputs
    job_options = BulkOptions(output=str(output), **options)
    plan = plan_job(task, [str(path) for path in paths], job_options)
    return run_job(plan, job_options, fake_args(faults, **(model or {})))


def write_lines(path: Path, rows: Iterable[Row | str]) -> Path:
    """Write JSON Lines; texts are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def make_rows(count: int, *, column: str = "text") -> list[Row]:
    """Make rows with texts of lengths that are spread unevenly."""
    return [{"id": index, column: f"{index} " + "x" * (index * 7919 % 97)} for index in range(count)]


def read_rows(output: Path) -> list[Row]:
    """Read the rows of a file, or of the shards of a folder in order."""
    if output.suffix == ".lance":
        import lance

        return lance.dataset(str(output)).to_table().to_pylist()  # type: ignore[no-any-return]
    if output.is_dir():
        return [row for shard in sorted(output.glob("part-*")) for row in read_rows(shard)]
    if output.suffix == ".parquet":
        rows: list[Row] = pq.read_table(output).to_pylist()
        return rows
    if output.suffix == ".npy":
        return [{"embedding": row.tolist()} for row in np.load(output)]
    return [json.loads(line) for line in output.read_bytes().splitlines()]


def read_bad_rows(output: Path) -> list[Row]:
    """Read the file of rows without a result."""
    path = output / "_bad.jsonl" if output.is_dir() else output.with_name(f"{output.name}.bad.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def list_lengths(rows: Sequence[Row], column: str = "embedding") -> list[int]:
    """Return the lengths of texts, as the vectors of the fake engine tell them."""
    assert all(len(set(row[column])) == 1 for row in rows)
    return [int(row[column][0]) for row in rows]


def write_table(path: Path, table: Any) -> Path:
    """Write a table in the format of the name."""
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=100)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=100)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=100)
    return path
