"""Assemble a job from its options, and run it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infinity_emb.bulk.columns import Columns
from infinity_emb.bulk.engine_executor import EngineExecutor, load_engine
from infinity_emb.bulk.job import Job, Summary
from infinity_emb.bulk.journal import Journal, Layout
from infinity_emb.bulk.lance_dataset import check_installed, is_dataset
from infinity_emb.bulk.reading import RowSource
from infinity_emb.bulk.results import check_fits, detect_type
from infinity_emb.bulk.server_executor import ServerAddress, ServerExecutor
from infinity_emb.bulk.shard_formats import make_format
from infinity_emb.bulk.sources import SourceFile, choose_format, find_files
from infinity_emb.bulk.tasks import Executor, Task, TaskOptions
from infinity_emb.config.bulk_options import BulkOptions
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine.progress import open_terminal_bar
from infinity_emb.errors import BackendFailed, BadInput, StartupError

DEFAULT_ROWS_PER_SHARD = 1_000_000
_OUTPUT_FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".npy": "npy",
    ".lance": "lance",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """A job as its files and options define it.

    files: of the input, in order.
    """

    task: TaskOptions
    files: Sequence[SourceFile]
    source: RowSource
    layout: Layout
    output_format: str
    column: str
    manifest: Mapping[str, Any]


def plan_job(task: Task, inputs: Sequence[str], options: BulkOptions) -> JobPlan:
    """Find and check the files and the output. Raises StartupError."""
    task_options = TaskOptions.from_options(task, options)
    columns = Columns.from_options(task, options, task_options.result_column)
    files = find_files(inputs)
    layout = choose_layout(options)
    if any(file.path == str(layout.output.absolute()) for file in files):
        raise StartupError(f"{layout.output} is also an input; give another output")
    input_format = choose_format(files, options.input_format)
    output_format = choose_output_format(layout, options.output_format)
    source = RowSource(files, input_format=input_format, output_format=output_format, columns=columns)
    manifest = {
        "input": [file.fingerprint() for file in files],
        "input format": input_format,
        "output format": output_format,
        "rows per shard": layout.rows_per_shard,
        "columns": asdict(columns),
        "task": asdict(task_options),
    }
    return JobPlan(
        task=task_options,
        files=files,
        source=source,
        layout=layout,
        output_format=output_format,
        column=columns.result,
        manifest=manifest,
    )


def choose_layout(options: BulkOptions) -> Layout:
    """Return a single file, or a folder if the name or the options require it. Raises StartupError."""
    if "://" in options.output:
        raise StartupError(
            f"output {options.output!r} is an address; write to a local file or folder and copy it afterwards"
        )
    output = Path(options.output).expanduser()
    output_format = _OUTPUT_FORMATS.get(output.suffix.lower())
    if output_format == "lance" and output.is_dir() and not is_dataset(output):
        raise StartupError(f"output {output} is a folder, but not a Lance dataset; give another name")
    names_folder = options.output.endswith("/") or output.is_dir()
    is_folder = output_format is None or (output_format != "lance" and names_folder)
    if not is_folder and options.rows_per_shard:
        raise StartupError(
            f"--rows-per-shard needs a folder as output; give {output.with_suffix('')}/ in place of {output}"
        )
    if is_folder and output.is_file():
        raise StartupError(
            f"output {output} is a file without a known ending; give .parquet, .jsonl, .npy or .lance"
        )
    return Layout(output, (options.rows_per_shard or DEFAULT_ROWS_PER_SHARD) if is_folder else None)


def choose_output_format(layout: Layout, given: str) -> str:
    """Return the format of the shards. Raises StartupError if the name differs, or pylance is missing."""
    by_name = None if layout.rows_per_shard else _OUTPUT_FORMATS[layout.output.suffix.lower()]
    if by_name and given not in ("auto", by_name):
        raise StartupError(f"--output-format {given} does not match the name {layout.output}; change one")
    chosen = by_name or ("parquet" if given == "auto" else given)
    if chosen == "lance":
        check_installed()
    return chosen


def run_job(plan: JobPlan, options: BulkOptions, args: EngineArgs) -> Summary:
    """Load the model or connect to the server, and compute the remaining rows; blocks.

    Raises StartupError, and ServingError if the job has to stop; another call continues it.
    """
    journal = Journal(plan.layout)
    journal.check_output(overwrite=options.overwrite)
    try:
        return asyncio.run(_run(plan, options, args, journal))
    finally:
        journal.close()


async def _run(plan: JobPlan, options: BulkOptions, args: EngineArgs, journal: Journal) -> Summary:
    async with open_executor(plan.task, options, args) as executor:
        result_type = detect_type(await compute_probe(executor, plan.task))
        check_fits(result_type, plan.output_format)
        shard_format = make_format(plan.output_format, plan.source.schema, plan.column, result_type)
        journal.open({**plan.manifest, **executor.describe()}, overwrite=options.overwrite)
        next_row = None if journal.is_finished else journal.find_next_row(shard_format.suffix)
        num_rows = 0
        if next_row is not None:
            job = Job(
                source=plan.source,
                journal=journal,
                executor=executor,
                shard_format=shard_format,
                rows_per_shard=plan.layout.rows_per_shard,
                probe=plan.task.probe,
            )
            _check_can_resume(plan, next_row)
            num_rows = await _run_with_bar(job, next_row, plan) - next_row
        return Summary(num_rows, journal.finish(), executor.num_tokens)


async def _run_with_bar(job: Job, next_row: int, plan: JobPlan) -> int:
    num_rows = plan.source.count_rows() if sys.stderr.isatty() else None  # opens every file
    bar = open_terminal_bar(num_rows, plan.task.task, num_done=next_row)
    try:
        return await job.run(next_row, bar)
    finally:
        bar.close()


def _check_can_resume(plan: JobPlan, next_row: int) -> None:
    if next_row and plan.files[0].filesystem is None:
        raise StartupError(
            f"{plan.layout.output} was begun from standard input, which cannot be read again; give"
            " --overwrite to start again"
        )


async def compute_probe(executor: Executor, task: TaskOptions) -> Any:
    """Compute one input, so that unsupported options end the job at once."""
    try:
        return (await executor.compute([task.probe]))[0]
    except StartupError:
        raise
    except (BadInput, BackendFailed) as exc:
        raise StartupError(f"the model cannot compute this: {exc.reason}") from exc


@contextlib.asynccontextmanager
async def open_executor(task: TaskOptions, options: BulkOptions, args: EngineArgs) -> AsyncIterator[Executor]:
    """Yield a started engine, or the client of a server. Raises StartupError."""
    given: dict[str, Any] = {
        "concurrency": options.concurrency,
        "inputs_per_request": options.inputs_per_request,
    }
    given = {name: value for name, value in given.items() if value}
    if options.url:
        address = ServerAddress(url=options.url, api_key=options.url_api_key, max_retries=options.max_retries)
        server = ServerExecutor(address, args, task, **given)
        try:
            yield server
        finally:
            await server.close()
        return
    engine = load_engine(args)
    async with engine:
        yield EngineExecutor(engine, task, **given)
