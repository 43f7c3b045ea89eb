"""Vectors → the bytes of a response, without a Python number in between.

numpy rows go straight through orjson, or through base64 from their buffer. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson
import pybase64
from orjson import Fragment
from starlette.responses import Response

from infinity_emb.backends.base import SparseRow
from infinity_emb.embedding import Embeddings, Span
from infinity_emb.primitives import EmbeddingEncodingFormat

Vector = npt.NDArray[Any]
Entry: TypeAlias = "Vector | SparseRow"
Column: TypeAlias = "Sequence[Vector] | Sequence[SparseRow]"

# Encoding holds the event loop: about a millisecond for this many values as text.
VALUES_PER_SLICE = 65_536


def json_response(
    content: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A response of JSON; numpy arrays allowed."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def task_response(task: str, results: Mapping[str, object], *, model: str, num_tokens: int) -> Response:
    """What a task answers: its name, its results under their member, and what all answers have."""
    return json_response(
        {
            "object": task,
            **results,
            "model": model,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
            "id": f"infinity-{uuid.uuid4()}",
            "created": int(time.time()),
        }
    )


async def embeddings_response(
    answer: Embeddings, *, encoding_format: EmbeddingEncodingFormat, model: str, is_named: bool = False
) -> Response:
    """The OpenAI answer, one member of `data` per input, in order.

    is_named: dense, sparse and multi-vector each have a member of their own name; otherwise `embedding` is
    what there is, and a matrix where that is multi-vector.
    Source: https://platform.openai.com/docs/api-reference/embeddings
    """
    columns = _named_columns(answer) if is_named else _one_column(answer)
    make = _member_maker(columns, encoding_format, answer.spans)
    data = await encode_list(make, len(next(iter(columns.values()))), _num_values(columns))
    return task_response("list", {"data": data}, model=model, num_tokens=answer.num_tokens)


async def sparse_response(rows: Sequence[SparseRow]) -> Response:
    """For each row the list of its entries, `{"index": …, "value": …}`."""
    num_values = _num_values({"sparse": rows})
    return json_response(await encode_list(lambda index: _entries_of(rows[index]), len(rows), num_values))


async def encode_list(make_member: Callable[[int], object], num_members: int, num_values: int) -> Fragment:
    """A list of JSON. Members are made when they are written, and other requests get turns in between.

    num_values: of all members together, which tells how many make a slice.
    """
    size = max(1, VALUES_PER_SLICE * num_members // max(1, num_values))
    slices = []
    for start in range(0, num_members, size):
        if start:
            await asyncio.sleep(0)
        members = [make_member(index) for index in range(start, min(start + size, num_members))]
        slices.append(_encode_members(members))
    return Fragment(b"[" + b",".join(slices) + b"]")


def to_base64(array: Vector) -> str:
    """The array's own bytes, little-endian, row by row: values, or one byte per 8 bits of a binary vector."""
    little_endian = array if sys.byteorder == "little" else array.byteswap()
    return pybase64.b64encode_as_string(np.ascontiguousarray(little_endian).data)


def _one_column(answer: Embeddings) -> dict[str, Column]:
    vectors = answer.dense if answer.dense is not None else answer.multivector
    assert vectors is not None, "a request that names no outputs is for vectors"
    return {"embedding": vectors}


def _named_columns(answer: Embeddings) -> dict[str, Column]:
    columns: dict[str, Column | None] = {
        "embedding": answer.dense,
        "sparse_embedding": answer.sparse,
        "multivector_embedding": answer.multivector,
    }
    return {name: column for name, column in columns.items() if column is not None}


def _member_maker(
    columns: Mapping[str, Column], encoding_format: EmbeddingEncodingFormat, spans: Sequence[Span] | None
) -> Callable[[int], object]:
    """Index → member of `data`."""
    is_base64 = encoding_format is EmbeddingEncodingFormat.base64
    writers = [(name, column, _writer_of(column[0], is_base64=is_base64)) for name, column in columns.items()]
    matrices = next((column for column in columns.values() if _is_matrix(column[0])), None)

    def make_member(index: int) -> object:
        member: dict[str, object] = {"object": "embedding"}
        for name, column, write in writers:
            member[name] = write(column[index])
        member["index"] = index
        if is_base64 and matrices is not None:
            member["shape"] = np.shape(matrices[index])
        if spans is not None:
            member["late_chunking"] = {"char_range": list(spans[index])}
        return member

    return make_member


def _writer_of(entry: Entry, *, is_base64: bool) -> Callable[[Any], object]:
    if isinstance(entry, SparseRow):
        return _describe_sparse
    return to_base64 if is_base64 else np.ascontiguousarray


def _describe_sparse(row: SparseRow) -> object:
    return {"indices": np.ascontiguousarray(row.indices), "values": np.ascontiguousarray(row.values)}


def _is_matrix(entry: Entry) -> bool:
    return not isinstance(entry, SparseRow) and entry.ndim == 2


def _num_values(columns: Mapping[str, Column]) -> int:
    return sum(
        2 * len(entry.indices) if isinstance(entry, SparseRow) else entry.size
        for column in columns.values()
        for entry in column
    )


def _entries_of(row: SparseRow) -> Fragment:
    """The numbers are written as two lists, at once, and their texts are woven together."""
    if not len(row.indices):
        return Fragment(b"[]")
    texts = (_encode_members(np.ascontiguousarray(column)).split(b",") for column in row)
    entries = map(b'{"index":%b,"value":%b}'.__mod__, zip(*texts, strict=True))
    return Fragment(b"[" + b",".join(entries) + b"]")


def _encode_members(members: list[object] | Vector) -> bytes:
    """A list without its brackets."""
    return orjson.dumps(members, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
