"""Run batches: compute the requests of each in order, and commit their results as they come."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from infinity_emb.scheduling.fair_queue import Flow
from infinity_emb.scheduling.fair_semaphore import FairSemaphore
from infinity_emb.server.batches.lines import (
    Checked,
    LineRequest,
    LineResponse,
    Problem,
    check_lines,
    read_requests,
    write_expired,
    write_response,
)
from infinity_emb.server.batches.pace import Pace
from infinity_emb.server.batches.result_files import Result, ResultFiles
from infinity_emb.server.batches.store import BatchRecord, BatchStore, FileRecord, StorageFull

logger = logging.getLogger("infinity_emb")

# Concurrent requests of one batch, with their inputs and bytes (one may have more); and concurrent batches.
CONCURRENCY = 16
MAX_INPUTS_AT_ONCE = 2048
MAX_BYTES_AT_ONCE = 2**24
MAX_RUNNING = 4
# Results are deleted after this time.
RESULT_TTL_S = 30 * 24 * 3600

Compute = Callable[[bytes, str], Awaitable[LineResponse]]


class _Pending(NamedTuple):
    """A request of a batch that is being computed, or whose result waits for those before it."""

    request: LineRequest
    task: asyncio.Task[Result]


class BatchRunner:
    """Run the batches of a store, a few at a time; owners take turns.

    compute: returns the response to one request of an owner, however long it takes.
    max_total_bytes: limit of all files; a batch whose results exceed it fails.
    now_s: the wall clock.
    """

    def __init__(
        self,
        store: BatchStore,
        compute: Compute,
        *,
        pace: Pace,
        max_line_bytes: int,
        max_total_bytes: int,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._max_total_bytes = max_total_bytes
        self._compute = compute
        self._pace = pace
        self._max_line_bytes = max_line_bytes
        self._now_s = now_s
        self._slots = FairSemaphore(MAX_RUNNING, max_per_client=max(1, MAX_RUNNING - 1))
        self._batches: dict[str, BatchRecord] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._waiting: set[str] = set()
        self._one_at_a_time = asyncio.Lock()
        self._line_s = 0.0  # duration of the last line
        self._cancelled: set[str] = set()
        self._saving = threading.Lock()  # held while a batch is changed and saved

    def start(self, batch: BatchRecord) -> None:
        """Run a batch as soon as there is room."""
        if batch.fields["status"] == "cancelling":
            self._cancelled.add(batch.id)
        self._batches[batch.id] = batch
        self._tasks[batch.id] = asyncio.create_task(self._run(batch))

    async def cancel(self, batch_id: str) -> BatchRecord | None:
        """End a batch with the results so far; return it, or None if it is not running."""
        batch = self._batches.get(batch_id)
        if batch is None or batch.is_finished:
            return None
        if batch_id not in self._cancelled:
            self._cancelled.add(batch_id)
            await asyncio.to_thread(self._save_cancelling, batch)
            if batch_id in self._waiting:
                self._tasks[batch_id].cancel()
                self.start(batch)
        return batch

    def _save_cancelling(self, batch: BatchRecord) -> None:
        with self._saving:
            if not batch.is_finished:
                self._set_status(batch, "cancelling")
                self._store.save_batch(batch)

    async def stop(self) -> None:
        """Stop all batches where they are; another process may continue them."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, batch: BatchRecord) -> None:
        try:
            if batch.id in self._cancelled:
                await self._compute_lines(batch)
                return
            self._waiting.add(batch.id)
            await self._slots.acquire(Flow(batch.owner), cost=1)
            try:
                self._waiting.discard(batch.id)
                if batch.fields["status"] == "validating":
                    await self._check(batch)
                if not batch.is_finished:
                    await self._compute_lines(batch)
            finally:
                self._slots.release(Flow(batch.owner))
        except (OSError, sqlite3.Error) as exc:
            logger.error("batch %s stopped: %s; it continues when the server is started again", batch.id, exc)
        finally:
            if asyncio.current_task() is self._tasks.get(batch.id):
                self._forget(batch.id)

    def _forget(self, batch_id: str) -> None:
        self._waiting.discard(batch_id)
        self._cancelled.discard(batch_id)
        del self._tasks[batch_id], self._batches[batch_id]

    async def _check(self, batch: BatchRecord) -> None:
        path = self._store.content_path(batch.fields["input_file_id"])
        checked = await asyncio.to_thread(check_lines, path, self._max_line_bytes)
        await run_to_end(lambda: self._save_checked(batch, checked))

    def _save_checked(self, batch: BatchRecord, checked: Checked) -> None:
        with self._saving:
            batch.fields["request_counts"]["total"] = checked.num_lines
            if checked.problems:
                self._set_failed(batch, checked.problems)
            elif batch.id not in self._cancelled:
                self._set_status(batch, "in_progress")
            self._store.save_batch(batch)

    async def _compute_lines(self, batch: BatchRecord) -> None:
        path = self._store.content_path(batch.fields["input_file_id"])
        files = ResultFiles(self._store, batch, self._saving, max_total_bytes=self._max_total_bytes)
        requests = read_requests(path, batch.num_lines, self._max_line_bytes)
        pending: deque[_Pending] = deque()
        try:
            async for request in _iterate(requests):
                if self._pace.is_busy:
                    await self._go_slowly(batch, pending, files)
                while not _has_room(pending, request):
                    await self._collect_first(pending, files)
                if batch.id in self._cancelled:
                    break
                pending.append(_Pending(request, asyncio.create_task(self._compute_line(request, batch))))
            while pending and batch.id not in self._cancelled:
                await self._collect_first(pending, files)
            await _cancel_all(pending)
            await run_to_end(lambda: self._finish(batch, files))
        except (OSError, sqlite3.Error):
            raise
        except Exception as exc:  # noqa: BLE001 - a batch that is never finished would block its file
            problem = _describe_failure(batch, exc)
            files.discard()
            await run_to_end(lambda: self._finish(batch, files, problem))
        finally:
            await _cancel_all(pending)
            files.close()

    async def _go_slowly(self, batch: BatchRecord, pending: deque[_Pending], files: ResultFiles) -> None:
        """Wait for the lines that are being computed, and until the next one may start."""
        async with self._one_at_a_time:
            while pending:
                await self._collect_first(pending, files)
            await run_to_end(files.commit)
            num_left = batch.fields["request_counts"]["total"] - batch.num_lines
            self._pace.note_line(self._line_s, num_left, batch.fields["expires_at"] - self._now_s())
            await self._pace.wait()

    async def _collect_first(self, pending: deque[_Pending], files: ResultFiles) -> None:
        files.add(await pending[0].task)
        pending.popleft()
        if files.is_full:
            await run_to_end(files.commit)

    async def _compute_line(self, request: LineRequest, batch: BatchRecord) -> Result:
        remaining_s = batch.fields["expires_at"] - self._now_s()
        if remaining_s > 0:
            start_s = time.monotonic()
            try:
                response = await asyncio.wait_for(self._compute(request.body, batch.owner), remaining_s)
                self._line_s = time.monotonic() - start_s
                return Result(write_response(request, response), response.status != 200)
            except asyncio.TimeoutError:
                pass
        return Result(write_expired(request), is_error=True)

    def _finish(self, batch: BatchRecord, files: ResultFiles, problem: Problem | None = None) -> None:
        """Publish the results and finish the batch in one step; it fails if there is a problem."""
        files.commit()
        now = int(self._now_s())
        records = []
        for kind, file_id, num_bytes in (
            ("output", batch.output_file_id, batch.output_bytes),
            ("error", batch.error_file_id, batch.error_bytes),
        ):
            if num_bytes:
                name = f"{batch.id}_{kind}.jsonl"
                batch.fields[f"{kind}_file_id"] = file_id
                records.append(
                    FileRecord(file_id, batch.owner, name, "batch_output", num_bytes, now, now + RESULT_TTL_S)
                )
            else:
                self._store.content_path(file_id).unlink(missing_ok=True)
        with self._saving:
            self._set_status(batch, "finalizing")
            if problem:
                self._set_failed(batch, [problem])
            elif batch.id in self._cancelled:
                self._set_status(batch, "cancelled")
            else:
                self._set_status(batch, "expired" if now >= batch.fields["expires_at"] else "completed")
            self._store.save_batch(batch, records)

    def _set_failed(self, batch: BatchRecord, problems: Iterable[Problem]) -> None:
        data = [problem._asdict() for problem in problems]
        batch.fields["errors"] = {"object": "list", "data": data}
        self._set_status(batch, "failed")

    def _set_status(self, batch: BatchRecord, status: str) -> None:
        batch.fields["status"] = status
        batch.fields[f"{status}_at"] = int(self._now_s())


def _describe_failure(batch: BatchRecord, failure: Exception) -> Problem:
    if isinstance(failure, StorageFull):
        remedy = "delete some, and resubmit the lines that have no result yet"
        return Problem("storage_full", f"{failure}; {remedy}")
    logger.error("batch %s failed: %r", batch.id, failure, exc_info=failure)
    return Problem("server_error", "internal error; the server's log has it under the id of this batch")


async def _iterate(requests: Iterator[LineRequest]) -> AsyncIterator[LineRequest]:
    """Yield requests that are read on a thread."""
    while (request := await asyncio.to_thread(next, requests, None)) is not None:
        yield request


def _has_room(pending: Collection[_Pending], request: LineRequest) -> bool:
    """Return true if a request may run beside others: it may be large, and its response far larger."""
    requests = [request, *(each.request for each in pending)]
    num_inputs = sum(each.num_inputs for each in requests)
    num_bytes = sum(len(each.body) for each in requests)
    are_few = (
        len(requests) <= CONCURRENCY and num_inputs <= MAX_INPUTS_AT_ONCE and num_bytes <= MAX_BYTES_AT_ONCE
    )
    return are_few or not pending


async def run_to_end(change: Callable[[], None]) -> None:
    """Run a write to disk on a thread, and wait for its end even if the caller is cancelled."""
    work = asyncio.ensure_future(asyncio.to_thread(change))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        await work
        raise


async def _cancel_all(pending: Iterable[_Pending]) -> None:
    tasks = [each.task for each in pending]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
