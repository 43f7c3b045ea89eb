"""Compute the rows of a Ray Dataset, as the commands `embed`, `rerank` and `classify` do for files.

`ComputeRows` is the class for `Dataset.map_batches`: each actor loads the model once. `RowSink` writes
rows with a result to Parquet, and rows without one to JSON Lines beside it.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs
from ray.data import Datasink

from infinity_emb.bulk.columns import Columns
from infinity_emb.bulk.computing import compute_rows
from infinity_emb.bulk.results import ResultType, detect_type, to_arrow
from infinity_emb.bulk.rows import Rejected, RowInput, show_input
from infinity_emb.bulk.run import compute_probe, open_executor
from infinity_emb.bulk.tables import check_text_columns, read_inputs
from infinity_emb.bulk.tasks import Task, TaskOptions
from infinity_emb.config.bulk_options import BulkOptions
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.config.parsing import read_names
from infinity_emb.errors import StartupError
from infinity_emb.storage.files import DRAFT_SUFFIX

T = TypeVar("T")

ERROR_COLUMN = "error"
_ERROR = pa.struct([("reason", pa.string()), ("content", pa.string())])
_DATASET = "the dataset"


class ComputeRows:
    """Compute the rows of batches with a model that is loaded once per actor.

        dataset.map_batches(
            ComputeRows,
            fn_constructor_kwargs={"model": EngineArgs("BAAI/bge-small-en-v1.5")},
            batch_format="pyarrow",
            batch_size=4096,
            concurrency=2,
            num_gpus=1,
        )

    task: embed, rerank or classify.
    options: the options of that command that concern columns and results, such as `text_column`,
        `keep_columns`, `dimensions` and `truncate`, or `url` for a running server in place of a model.
    A batch is a table; the returned one has two more columns: the results, and `error`, a struct of
    `reason` and `content` for rows without a result. Raises StartupError for an invalid option or model.
    """

    def __init__(
        self, model: EngineArgs, task: Task = "embed", options: Mapping[str, Any] | None = None
    ) -> None:
        bulk_options = BulkOptions(output="-", **read_names(BulkOptions, options or {}))
        self._task = TaskOptions.from_options(task, bulk_options)
        self._columns = Columns.from_options(task, bulk_options, self._task.result_column)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="infinity-rows", daemon=True).start()
        self._opened = open_executor(self._task, bulk_options, model)  # for as long as the process lives
        self._executor = self._run(self._opened.__aenter__())
        self._result_type = detect_type(self._run(compute_probe(self._executor, self._task)))
        self._slots = asyncio.Semaphore(self._executor.concurrency)

    def __call__(self, table: Any) -> Any:
        """Compute a pyarrow.Table. Raises ServingError if no row can be computed."""
        check_text_columns(table.schema, self._columns, _DATASET)
        kept_names = self._columns.select_kept(table.column_names)
        if ERROR_COLUMN in kept_names:
            raise StartupError(f"{_DATASET} has a column {ERROR_COLUMN!r} already; rename it")
        inputs = [value for batch in table.to_batches() for value in read_inputs(batch, self._columns)]
        results = self._run(compute_rows(inputs, self._executor, self._task.probe, self._slots))
        columns = {
            self._columns.result: _make_result_column(results, self._result_type),
            ERROR_COLUMN: _make_error_column(inputs, results),
        }
        kept = table.select(kept_names)
        for name, column in columns.items():
            kept = kept.append_column(name, column)
        return kept

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _make_result_column(results: Sequence[Any], result_type: ResultType) -> Any:
    """Return the results, null for rows without one."""
    good = [result for result in results if not isinstance(result, Rejected)]
    column = to_arrow(good, result_type)
    if len(good) == len(results):
        return column
    positions = iter(range(len(good)))
    return column.take(
        pa.array([None if isinstance(each, Rejected) else next(positions) for each in results], pa.int64())
    )


def _make_error_column(inputs: Sequence[RowInput | Rejected], results: Sequence[Any]) -> Any:
    errors = [
        {"reason": result.reason, "content": show_input(value)} if isinstance(result, Rejected) else None
        for value, result in zip(inputs, results, strict=True)
    ]
    return pa.array(errors, _ERROR)


class Written(NamedTuple):
    """The numbers of rows written with and without a result."""

    num_rows: int
    num_bad_rows: int


class RowSink(Datasink):
    """Write what `ComputeRows` returns, with `Dataset.write_datasink(RowSink("vectors/"))`.

    Rows with a result go to `part-000000.parquet`, …, and the others, with the reason and the kept columns,
    to `_bad-000000.jsonl`, …. A part that is rewritten after a crash replaces the earlier one.

    output: a folder that is empty or does not exist, on storage that all nodes can reach, or an address
        that pyarrow understands, such as s3://bucket/vectors.
    written: the numbers of rows, once all are written.
    Raises StartupError for a folder with files.
    """

    def __init__(self, output: str) -> None:
        self.written = Written(0, 0)
        self._output = output
        filesystem, folder = _find_filesystem(output)
        found = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
        if found:
            raise StartupError(f"{output} is not empty: it has {found[0].base_name}; give another folder")

    def write(self, blocks: Iterable[Any], ctx: Any) -> Written:
        """Write the rows of one task."""
        tables = [block for block in blocks if block.num_rows]
        if not tables:
            return Written(0, 0)
        table = pa.concat_tables(tables)
        is_good = pc.is_null(table.column(ERROR_COLUMN))
        good = table.filter(is_good).drop_columns([ERROR_COLUMN])
        bad = table.filter(pc.invert(is_good))
        filesystem, folder = _find_filesystem(self._output)
        filesystem.create_dir(folder)
        number = f"{ctx.task_idx:06d}"
        if bad.num_rows:
            _write_file(filesystem, f"{folder}/_bad-{number}.jsonl", lambda file: _write_bad_rows(file, bad))
        if good.num_rows:
            _write_file(
                filesystem, f"{folder}/part-{number}.parquet", lambda file: pq.write_table(good, file)
            )
        return Written(good.num_rows, bad.num_rows)

    def on_write_complete(self, write_result: Any) -> None:
        """Add up the rows that the tasks have written."""
        columns = zip(*write_result.write_returns, strict=True)
        self.written = Written(*map(sum, columns)) if write_result.write_returns else Written(0, 0)


def _find_filesystem(output: str) -> tuple[Any, str]:
    """Return the filesystem of a path or an address, and the path in it."""
    return fs.FileSystem.from_uri(output) if "://" in output else (fs.LocalFileSystem(), output.rstrip("/"))


def _write_file(filesystem: Any, path: str, write: Any) -> None:
    """Create or replace a file as a whole."""
    draft = path + DRAFT_SUFFIX
    with filesystem.open_output_stream(draft) as file:
        write(file)
    filesystem.move(draft, path)


def _write_bad_rows(file: BinaryIO, table: Any) -> None:
    for row in table.to_pylist():
        error = row.pop(ERROR_COLUMN)
        kept = {name: value for name, value in row.items() if value is not None}
        file.write(json.dumps({**error, "row": kept}, default=str).encode() + b"\n")
