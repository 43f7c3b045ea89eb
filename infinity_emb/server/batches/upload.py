"""Read an uploaded file from a form, up to a size limit, into a folder."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import urlsplit

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

from infinity_emb.server.request_errors import body_error
from infinity_emb.server.requests.headers import read_content_length
from infinity_emb.storage.files import write_durably

# The other fields of the form, and its boundaries.
_FORM_BYTES = 64 * 2**10
MAX_FILENAME_CHARS = 255


class Uploaded(NamedTuple):
    """A file in the folder, and the other fields of its form."""

    filename: str
    num_bytes: int
    fields: dict[str, str]


def check_origin(request: Request, allowed: Sequence[str]) -> None:
    """Raise HTTPException 403 for a form that a page of another server sends, unless its origin is allowed.

    Browsers send forms with files to any server without asking it first, unlike JSON.
    """
    origin = request.headers.get("origin")
    if origin is None or origin in allowed:
        return
    if _find_host(origin) != request.headers.get("host"):
        raise HTTPException(403, f"pages of {origin[:200]!r} may not upload files to this server")


def _find_host(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # of an unclosed bracket, for example
        return ""


async def read_upload(request: Request, path: Path, max_bytes: int) -> Uploaded:
    """Write the field `file` of a form to `path`.

    Raises HTTPException 413 for a larger file, before reading if its length is declared, and 415 for
    another content type; RequestValidationError for a form without a file.
    """
    content_type = request.headers.get("content-type", "")
    media_type, parameters = parse_options_header(content_type)
    if media_type != b"multipart/form-data":
        raise HTTPException(415, f"the content type {content_type[:200]!r} is not multipart/form-data")
    if parameters.get(b"charset", b"utf-8").lower() != b"utf-8":  # Python's codecs may raise, or take hours
        raise HTTPException(415, "the charset of a form must be UTF-8; leave it out")
    if read_content_length(request.scope) > max_bytes + _FORM_BYTES:
        raise _too_large(max_bytes)
    limited = Request(request.scope, _limit(request, max_bytes + _FORM_BYTES, max_bytes))
    async with limited.form(max_files=1, max_fields=8, max_part_size=_FORM_BYTES) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise body_error("missing", "the form has no file", loc=["file"])
        num_bytes = await asyncio.to_thread(_copy, file.file, path)
        if num_bytes > max_bytes:
            await asyncio.to_thread(path.unlink)
            raise _too_large(max_bytes)
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        return Uploaded((file.filename or "")[:MAX_FILENAME_CHARS], num_bytes, fields)


def _limit(request: Request, max_body_bytes: int, max_bytes: int) -> Receive:
    num_received = 0

    async def receive() -> Message:
        nonlocal num_received
        message = await request.receive()
        num_received += len(message.get("body", b""))
        if num_received > max_body_bytes:
            raise _too_large(max_bytes)
        return message

    return receive


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(
        413,
        f"the file has more than {max_bytes} bytes; split it, or start the server with a larger"
        " --batch-max-file-mb",
    )


def _copy(source: BinaryIO, path: Path) -> int:
    source.seek(0)
    write_durably(path, lambda file: shutil.copyfileobj(source, file, 2**20))
    return os.path.getsize(path)
