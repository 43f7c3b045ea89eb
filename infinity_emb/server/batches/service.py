"""Serve files and batches to their owners, within limits on number and size."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.types import ASGIApp

from infinity_emb.config.server_config import ServerConfig
from infinity_emb.server.batches.line_app import LineApp
from infinity_emb.server.batches.pace import Pace, PaceMiddleware
from infinity_emb.server.batches.runner import RESULT_TTL_S, BatchRunner, run_to_end
from infinity_emb.server.batches.store import BatchRecord, BatchStore, FileRecord, StorageFull
from infinity_emb.server.batches.upload import check_origin, read_upload
from infinity_emb.server.endpoints import API_ENDPOINTS
from infinity_emb.server.router import EndpointApp, ServerContext

logger = logging.getLogger("infinity_emb")

MAX_UNFINISHED_BATCHES = 64  # of one owner
MAX_BATCHES = 10_000  # of one owner, the finished ones included
RESULT_SHARE = 1 / 10  # of the limit of all files; uploads leave it to results
COMPLETION_WINDOW_S = {"24h": 24 * 3600}
_CLEANING_PAUSE_S = 3600


class BatchService:
    """The files and batches of one app.

    An owner is the digest of an API key; without keys, all clients are one owner.
    """

    def __init__(
        self, config: ServerConfig, endpoint: ASGIApp, *, now_s: Callable[[], float] = time.time
    ) -> None:
        """Open the folder of `--batch-dir`. Raises StartupError.

        endpoint: serves /embeddings.
        """
        self.store = BatchStore(Path(config.batch_dir).expanduser())
        self._config = config
        self._max_total_bytes = config.batch_max_total_mb * 2**20
        self._endpoint = endpoint
        self._now_s = now_s
        self._runner: BatchRunner | None = None
        self._pace = Pace()

    @property
    def middleware(self) -> list[Middleware]:
        """List the middleware that notes other requests, which slow batches down."""
        return [Middleware(PaceMiddleware, pace=self._pace)]

    def note_request(self) -> None:
        """Note a request of another process, which slows batches down."""
        self._pace.note_request()

    @asynccontextmanager
    async def running(self, app: ASGIApp) -> AsyncIterator[None]:
        """Continue unfinished batches, and stop them where they are at the end of the block."""
        self._runner = BatchRunner(
            self.store,
            LineApp(self._endpoint, app).respond,
            pace=self._pace,
            max_line_bytes=self._config.max_body_bytes,
            max_total_bytes=self._max_total_bytes,
            now_s=self._now_s,
        )
        cleaner = asyncio.create_task(self._clean())
        try:
            for batch in self.store.list_unfinished():
                self._runner.start(batch)
            yield
        finally:
            cleaner.cancel()
            await self._runner.stop()
            await asyncio.gather(cleaner, return_exceptions=True)
            self.store.close()

    async def upload(self, request: Request, owner: str) -> FileRecord:
        """Store an uploaded file.

        Raises HTTPException 400, 413 and 507, BadInput for too many files, and RequestValidationError.
        """
        if not self._config.permissive_cors:
            check_origin(request, self._config.cors_origins)
        await asyncio.to_thread(self.store.check_num_files, owner)
        file_id = f"file-{secrets.token_hex(16)}"
        max_bytes = self._config.batch_max_file_mb * 2**20
        try:
            await self._reserve(file_id, max_bytes)
            return await self._receive(request, owner, file_id, max_bytes)
        finally:
            self.store.release(file_id)

    async def _reserve(self, file_id: str, num_bytes: int) -> None:
        limit = max(num_bytes, int((1 - RESULT_SHARE) * self._max_total_bytes))
        try:
            await run_to_end(lambda: self.store.reserve(file_id, num_bytes, limit))
        except StorageFull as exc:
            message = (
                f"{exc} for uploads; delete some, or start the server with a larger --batch-max-total-mb"
            )
            raise HTTPException(507, message) from exc

    async def _receive(self, request: Request, owner: str, file_id: str, max_bytes: int) -> FileRecord:
        path = self.store.content_path(file_id)
        uploaded = await read_upload(request, path, max_bytes)
        name, num_bytes, now = uploaded.filename, uploaded.num_bytes, int(self._now_s())
        with ExitStack() as undo:
            undo.callback(path.unlink, missing_ok=True)
            purpose, ttl_s = _read_purpose(uploaded.fields), _read_ttl(uploaded.fields)
            record = FileRecord(file_id, owner, name, purpose, num_bytes, now, now + ttl_s)
            await asyncio.to_thread(self.store.add_file, record)
            undo.pop_all()
        return record

    async def find_file(self, file_id: str, owner: str) -> FileRecord:
        """Return a file. Raises HTTPException 404, also for one of another owner."""
        record = await asyncio.to_thread(self.store.find_file, file_id, owner)
        if record is None:
            raise HTTPException(404, f"No such File object: {file_id[:80]}")
        return record

    async def delete_file(self, file_id: str, owner: str) -> None:
        """Delete a file. Raises HTTPException 404, and 409 while a batch reads it."""
        record = await self.find_file(file_id, owner)
        unfinished = await asyncio.to_thread(self.store.list_unfinished)
        if any(batch.fields["input_file_id"] == file_id for batch in unfinished):
            raise HTTPException(409, f"file {file_id} is the input of an unfinished batch; cancel it")
        await asyncio.to_thread(self.store.remove_file, record.id)

    async def create(
        self, owner: str, *, input_file_id: str, endpoint: str, window: str, metadata: dict[str, str] | None
    ) -> BatchRecord:
        """Create a batch and start it.

        Raises HTTPException 404 for an unknown file and 429 for too many batches, and BadInput for too many
        files.
        """
        await self.find_file(input_file_id, owner)
        now = int(self._now_s())
        batch_id = f"batch_{secrets.token_hex(16)}"
        fields: dict[str, Any] = {
            "id": batch_id,
            "object": "batch",
            "endpoint": endpoint,
            "errors": None,
            "input_file_id": input_file_id,
            "completion_window": window,
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "in_progress_at": None,
            "expires_at": now + COMPLETION_WINDOW_S[window],
            **dict.fromkeys(
                ["finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at"]
            ),
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": metadata,
        }
        batch = BatchRecord(
            id=batch_id,
            owner=owner,
            fields=fields,
            output_file_id=f"file-{secrets.token_hex(16)}",
            error_file_id=f"file-{secrets.token_hex(16)}",
        )
        limits = {"max_unfinished": MAX_UNFINISHED_BATCHES, "max_batches": MAX_BATCHES}
        if not await asyncio.to_thread(self.store.add_batch, batch, **limits):
            raise HTTPException(429, f"{MAX_UNFINISHED_BATCHES} batches are unfinished; try again later")
        self._get_runner().start(batch)
        return batch

    async def find_batch(self, batch_id: str, owner: str) -> BatchRecord:
        """Return a batch. Raises HTTPException 404, also for one of another owner."""
        batch = await asyncio.to_thread(self.store.find_batch, batch_id, owner)
        if batch is None:
            raise HTTPException(404, f"No such Batch object: {batch_id[:80]}")
        return batch

    async def cancel(self, batch_id: str, owner: str) -> BatchRecord:
        """Cancel a batch, keeping its results. Raises HTTPException 404, and 409 if it is finished."""
        batch = await self.find_batch(batch_id, owner)
        if batch.is_finished:
            raise HTTPException(409, f"batch {batch_id} is {batch.fields['status']} and cannot be cancelled")
        running = await self._get_runner().cancel(batch_id)
        return running or await self.find_batch(batch_id, owner)

    async def _clean(self) -> None:
        """Delete expired files and batches, at the start and every hour."""
        while True:
            try:
                await self._remove_expired(int(self._now_s()))
            except (sqlite3.Error, OSError) as exc:
                logger.error("cannot delete expired files and batches; trying again later: %s", exc)
            await asyncio.sleep(_CLEANING_PAUSE_S)

    async def _remove_expired(self, now: int) -> None:
        inputs = {
            batch.fields["input_file_id"] for batch in await asyncio.to_thread(self.store.list_unfinished)
        }
        for file_id in await asyncio.to_thread(self.store.list_expired_files, now):
            if file_id not in inputs:
                await asyncio.to_thread(self.store.remove_file, file_id)
        await asyncio.to_thread(self.store.remove_finished_batches, now - RESULT_TTL_S)

    def _get_runner(self) -> BatchRunner:
        if self._runner is None:
            raise HTTPException(503, "the server has not started yet; try again later")
        return self._runner


def make_batch_service(config: ServerConfig, context: ServerContext) -> BatchService:
    """Open the folder of `--batch-dir`. Raises StartupError."""
    [endpoint] = [each for each in API_ENDPOINTS if each.path == "/embeddings"]
    return BatchService(config, EndpointApp(endpoint, context))


def _read_purpose(fields: dict[str, str]) -> str:
    purpose = fields.get("purpose")
    if purpose != "batch":
        raise HTTPException(
            400, f"purpose is {(purpose or '')[:80]!r}; this server takes files for 'batch' only"
        )
    return purpose


def _read_ttl(fields: dict[str, str]) -> int:
    """Return how long a file is kept. Source: `expires_after` of OpenAI's API, an hour to 30 days."""
    given = fields.get("expires_after[seconds]")
    if given is None:
        return RESULT_TTL_S
    if not given.isdecimal() or len(given) > 9 or not 3600 <= int(given) <= RESULT_TTL_S:
        raise HTTPException(400, f"expires_after[seconds] is {given[:80]!r}; give 3600 to {RESULT_TTL_S}")
    return int(given)
