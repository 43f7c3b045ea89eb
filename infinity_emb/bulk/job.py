"""Run a job: read windows of rows, compute them, and commit them in order.

While a window is computed, the next one is read and the one before is written.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from infinity_emb.bulk.computing import compute_rows
from infinity_emb.bulk.journal import Journal
from infinity_emb.bulk.reading import RowSource
from infinity_emb.bulk.rows import Rejected, RowInput, Window
from infinity_emb.bulk.shard_formats import ShardFormat
from infinity_emb.bulk.tasks import Executor
from infinity_emb.engine.progress import ProgressBar

MAX_PENDING_WINDOWS = 2


class Summary(NamedTuple):
    """The figures of one run; num_rows and num_tokens exclude earlier runs."""

    num_rows: int
    num_bad_rows: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The parts of a job; its journal is open.

    rows_per_shard: None for a single file.
    probe: an input that can be computed.
    """

    source: RowSource
    journal: Journal
    executor: Executor
    shard_format: ShardFormat
    rows_per_shard: int | None
    probe: RowInput

    async def run(self, next_row: int, bar: ProgressBar) -> int:
        """Compute and commit the rows from `next_row` on; return the number of rows in the whole input.

        Raises what reading, computing and writing raise; the same job can be continued afterwards.
        """
        self._join_complete_shard(next_row)
        windows = self.source.iterate_windows(next_row, self.rows_per_shard)
        slots = asyncio.Semaphore(self.executor.concurrency)
        pending: deque[tuple[Window, asyncio.Task[list[Any]]]] = deque()
        try:
            while (window := await asyncio.to_thread(next, windows, None)) is not None:
                work = compute_rows(window.list_inputs(), self.executor, self.probe, slots)
                pending.append((window, asyncio.create_task(work)))
                if len(pending) > MAX_PENDING_WINDOWS:
                    next_row = await self._commit_first(pending, bar)
            while pending:
                next_row = await self._commit_first(pending, bar)
        finally:
            tasks = [task for _, task in pending]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._join_last_shard, next_row)
        return next_row

    async def _commit_first(
        self, pending: deque[tuple[Window, asyncio.Task[list[Any]]]], bar: ProgressBar
    ) -> int:
        window, task = pending[0]
        results = await task
        pending.popleft()
        await asyncio.to_thread(self._commit, window, results)
        bar.update(len(results))
        return window.stop

    def _commit(self, window: Window, results: list[Any]) -> None:
        kept = pa.Table.from_batches([block.kept for block in window.blocks])
        is_good = [not isinstance(result, Rejected) for result in results]
        if not all(is_good):
            kept = kept.filter(pa.array(is_good))
        good = list(itertools.compress(results, is_good))
        self.journal.write_part(
            window.start,
            window.stop,
            window.list_bad_rows(results),
            lambda file: self.shard_format.write_part(file, kept, good),
        )
        self._join_complete_shard(window.stop)

    def _join_complete_shard(self, next_row: int) -> None:
        if next_row and self.rows_per_shard is not None and next_row % self.rows_per_shard == 0:
            self.journal.join_shard(next_row // self.rows_per_shard - 1, self.shard_format)

    def _join_last_shard(self, next_row: int) -> None:
        number = 0 if self.rows_per_shard is None else max(0, next_row - 1) // self.rows_per_shard
        self.journal.join_shard(number, self.shard_format)
