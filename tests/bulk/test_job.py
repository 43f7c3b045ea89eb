"""How a job keeps an executor busy, and what it holds in memory."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infinity_emb.bulk.columns import Columns
from infinity_emb.bulk.isolation import compute_each
from infinity_emb.bulk.job import Job
from infinity_emb.bulk.journal import Journal, Layout
from infinity_emb.bulk.reading import RowSource
from infinity_emb.bulk.results import detect_type
from infinity_emb.bulk.rows import Rejected
from infinity_emb.bulk.shard_formats import make_format
from infinity_emb.bulk.sources import find_files
from infinity_emb.config.bulk_options import BulkOptions
from infinity_emb.engine.progress import open_terminal_bar
from infinity_emb.errors import BackendFailed, BadInput
from tests.support.bulk_jobs import make_rows, write_lines
from tests.support.event_loop import run

DIMENSION = 64


class LengthExecutor:
    """Computes vectors of the length of a text, and records the requests."""

    num_tokens = 0
    inputs_per_request = 32
    concurrency = 4

    def __init__(self) -> None:
        self.requests: list[list[int]] = []
        self.num_open = self.max_open = 0

    def describe(self) -> Mapping[str, Any]:
        return {}

    async def compute(self, inputs: Sequence[Any]) -> Sequence[Any]:
        self.requests.append([len(text) for text in inputs])
        self.num_open += 1
        self.max_open = max(self.max_open, self.num_open)
        await asyncio.sleep(0)
        self.num_open -= 1
        return list(np.repeat(np.array([[len(text)] for text in inputs], np.float32), DIMENSION, axis=1))


def run_job(source: Path, output: Path, executor: LengthExecutor, output_format: str = "npy") -> int:
    columns = Columns.from_options("embed", BulkOptions(output="x"), "embedding")
    rows = RowSource(
        find_files([str(source)]), input_format="jsonl", output_format=output_format, columns=columns
    )
    journal = Journal(Layout(output, None))
    result_type = detect_type(np.zeros(DIMENSION, np.float32))
    journal.open({}, overwrite=True)
    job = Job(
        source=rows,
        journal=journal,
        executor=executor,
        shard_format=make_format(output_format, rows.schema, "embedding", result_type),
        rows_per_shard=None,
        probe="probe",
    )
    num_rows = run(job.run(0, open_terminal_bar(None, "", num_done=0)))
    journal.finish()
    return num_rows


def test_requests_hold_texts_of_similar_length_and_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infinity_emb.bulk.reading.MAX_WINDOW_ROWS", 320)
    rows, executor = make_rows(320), LengthExecutor()
    run_job(write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.npy", executor)
    assert executor.max_open == executor.concurrency
    assert all(len(request) == executor.inputs_per_request for request in executor.requests)
    flat = [length for request in executor.requests for length in request]
    assert flat == sorted((len(row["text"]) for row in rows), reverse=True)
    assert np.load(tmp_path / "out.npy")[:, 0].tolist() == [len(row["text"]) for row in rows]


@pytest.mark.parametrize("output_format", ["npy", "jsonl", "parquet"])
def test_ten_times_as_many_rows_need_no_more_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output_format: str
) -> None:
    monkeypatch.setattr("infinity_emb.bulk.reading.MAX_WINDOW_ROWS", 256)
    monkeypatch.setattr("infinity_emb.bulk.reading.SAMPLE_ROWS", 256)
    monkeypatch.setattr("infinity_emb.bulk.lines.ROWS_PER_BLOCK", 256)
    monkeypatch.setattr("infinity_emb.bulk.line_stream._CHUNK_BYTES", 2**14)
    own_pool, peaks = pa.default_memory_pool(), []
    for count in (1_500, 15_000):
        source = write_lines(tmp_path / f"{count}.jsonl", make_rows(count))
        pool = pa.proxy_memory_pool(own_pool)
        pa.set_memory_pool(pool)
        tracemalloc.start()
        assert run_job(source, tmp_path / "out", LengthExecutor(), output_format) == count
        peaks.append(tracemalloc.get_traced_memory()[1] + pool.max_memory())
        tracemalloc.stop()
    pa.set_memory_pool(own_pool)
    assert peaks[1] < 1.5 * peaks[0]


def test_inputs_to_blame_are_found_and_the_others_computed_in_few_requests() -> None:
    requests: list[int] = []

    async def compute(inputs: Sequence[int]) -> Sequence[int]:
        requests.append(len(inputs))
        for value in inputs:
            if value == 7:
                raise BadInput("seven", position=inputs.index(value))
            if value == 9:
                raise BackendFailed("nine")
        return inputs

    async def check_health() -> None:
        requests.append(-1)

    results = run(compute_each(range(64), compute, check_health))
    expected: list[Any] = list(range(64))
    expected[7], expected[9] = Rejected("seven"), Rejected("nine")
    assert results == expected
    assert requests.count(-1) == 1
    assert len(requests) < 24


def test_a_broken_executor_ends_the_search() -> None:
    async def compute(inputs: Sequence[int]) -> Sequence[int]:
        raise BackendFailed("broken")

    with pytest.raises(BackendFailed, match="broken"):
        run(compute_each(range(8), compute, lambda: compute([0])))
