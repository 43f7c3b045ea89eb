"""`/files` and `/batches` of OpenAI's API. They exist only with `--batch-dir`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from infinity_emb.server.batches.service import BatchService
from infinity_emb.server.batches.store import MAX_FILES, BatchRecord, FileRecord
from infinity_emb.server.requests.call import Call
from infinity_emb.server.responses.error_docs import TASK_ERRORS, Errors
from infinity_emb.server.responses.json_vectors import json_response
from infinity_emb.server.responses.sliced import JsonList
from infinity_emb.server.routing import Endpoint, Form, path_parameter, query_parameter, tag_endpoints
from infinity_emb.server.schemas.batches import (
    BATCH_EXAMPLES,
    BatchList,
    BatchObject,
    BatchRequest,
    DeletedFile,
    FileList,
    FileObject,
)

RecordT = TypeVar("RecordT", BatchRecord, FileRecord)

# A batch may have metadata and errors.
_VALUES_PER_ENTRY = 128
_MAX_BATCHES_PER_PAGE = 100
_DEFAULT_BATCHES_PER_PAGE = 20
_ERRORS = Errors({status: TASK_ERRORS[status] for status in (400, 404, 422, 429, 503)})


def make_batch_endpoints(service: BatchService) -> list[Endpoint]:
    """Make the endpoints over a service."""
    files, batches = _FileRoutes(service), _BatchRoutes(service)
    file_id = path_parameter("file_id", "Id of a file.")
    batch_id = path_parameter("batch_id", "Id of a batch.")
    page = [
        query_parameter("after", "Id of the last entry of the previous page."),
        query_parameter("limit", "Maximum number of entries."),
    ]
    purpose = query_parameter("purpose", "Purpose of the files: `batch` or `batch_output`.")

    def endpoint(path: str, handler: Any, response: Any, method: Any = "GET", *parameters: Any) -> Endpoint:
        form = Form(handler, None, response, errors=_ERRORS)
        return Endpoint(path, [form], method=method, parameters=parameters)

    create = Form(batches.create_batch, BatchRequest, BatchObject, BATCH_EXAMPLES, errors=_ERRORS)
    return tag_endpoints(
        "Batches",
        endpoint("/files", files.upload_file, FileObject, "POST"),
        endpoint("/files", files.list_files, FileList, "GET", purpose, *page),
        endpoint("/files/{file_id}", files.get_file, FileObject, "GET", file_id),
        endpoint("/files/{file_id}", files.delete_file, DeletedFile, "DELETE", file_id),
        endpoint("/files/{file_id}/content", files.get_file_content, None, "GET", file_id),
        Endpoint("/batches", [create]),
        endpoint("/batches", batches.list_batches, BatchList, "GET", *page),
        endpoint("/batches/{batch_id}", batches.get_batch, BatchObject, "GET", batch_id),
        endpoint("/batches/{batch_id}/cancel", batches.cancel_batch, BatchObject, "POST", batch_id),
    )


class _FileRoutes:
    def __init__(self, service: BatchService) -> None:
        self._service = service

    async def upload_file(self, call: Call) -> Response:
        """Upload a file.

        Takes a form with the fields `file` and `purpose`, which must be `batch`.
        """
        return json_response(_describe_file(await self._service.upload(call.request, _get_owner(call))))

    async def list_files(self, call: Call) -> Response:
        """List the files of this API key.

        Returns the newest first.
        """
        query, store = call.request.query_params, self._service.store
        purpose, after = query.get("purpose", ""), query.get("after", "")
        limit = _read_limit(call, MAX_FILES, MAX_FILES)
        records = await asyncio.to_thread(store.list_files, _get_owner(call), purpose, after, limit + 1)
        return _respond_page(records, _describe_file, limit)

    async def get_file(self, call: Call) -> Response:
        """Describe a file.

        Responds with 404 for a file of another API key.
        """
        return json_response(_describe_file(await self._find(call)))

    async def delete_file(self, call: Call) -> Response:
        """Delete a file.

        The input of a batch that is not finished cannot be deleted.
        """
        file_id = call.request.path_params["file_id"]
        await self._service.delete_file(file_id, _get_owner(call))
        return json_response({"id": file_id, "object": "file", "deleted": True})

    async def get_file_content(self, call: Call) -> Response:
        """Download a file.

        Returns its bytes.
        """
        record = await self._find(call)
        return FileResponse(
            self._service.store.content_path(record.id), media_type="application/octet-stream"
        )

    async def _find(self, call: Call) -> FileRecord:
        return await self._service.find_file(call.request.path_params["file_id"], _get_owner(call))


class _BatchRoutes:
    def __init__(self, service: BatchService) -> None:
        self._service = service

    async def create_batch(self, body: BatchRequest, call: Call) -> Response:
        """Create a batch.

        Its requests are computed when no other request needs the device.
        """
        batch = await self._service.create(
            _get_owner(call),
            input_file_id=body.input_file_id,
            endpoint=body.endpoint,
            window=body.completion_window,
            metadata=body.metadata,
        )
        return json_response(batch.fields)

    async def list_batches(self, call: Call) -> Response:
        """List the batches of this API key.

        Returns the newest first.
        """
        after = call.request.query_params.get("after", "")
        limit = _read_limit(call, _DEFAULT_BATCHES_PER_PAGE, _MAX_BATCHES_PER_PAGE)
        store = self._service.store
        records = await asyncio.to_thread(store.list_batches, _get_owner(call), after, limit + 1)
        return _respond_page(records, lambda batch: batch.fields, limit)

    async def get_batch(self, call: Call) -> Response:
        """Describe a batch.

        Poll it until `status` is `completed`, `failed`, `expired` or `cancelled`.
        """
        batch = await self._service.find_batch(call.request.path_params["batch_id"], _get_owner(call))
        return json_response(batch.fields)

    async def cancel_batch(self, call: Call) -> Response:
        """Cancel a batch.

        Results computed so far stay in its files.
        """
        batch = await self._service.cancel(call.request.path_params["batch_id"], _get_owner(call))
        return json_response(batch.fields)


def _get_owner(call: Call) -> str:
    """Return the digest of the API key; without keys, all clients are one owner."""
    owner: str = getattr(call.request.state, "client", "")
    return owner


def _describe_file(record: FileRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "object": "file",
        "bytes": record.num_bytes,
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "filename": record.filename,
        "purpose": record.purpose,
        "status": "processed",
    }


def _read_limit(call: Call, default: int, maximum: int) -> int:
    given = call.request.query_params.get("limit", str(default))
    if not given.isdecimal() or len(given) > 9 or not 1 <= int(given) <= maximum:
        raise HTTPException(400, f"limit is {given[:80]!r}; give 1 to {maximum}")
    return int(given)


def _respond_page(
    records: Sequence[RecordT], describe: Callable[[RecordT], dict[str, Any]], limit: int
) -> Response:
    """Make the response of a page; `records` has one more if there is another page."""
    page = records[:limit]
    data = JsonList(lambda index: describe(page[index]), len(page), _VALUES_PER_ENTRY * len(page))
    return json_response(
        {
            "object": "list",
            "data": data,
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": len(records) > limit,
        }
    )
