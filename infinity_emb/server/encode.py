"""Vectors → the bytes of a response, without a Python number in between.

numpy rows go straight through orjson, through base64 from their buffer, or as they are into a body of nothing
else. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import orjson
import pybase64
from orjson import Fragment
from starlette.responses import Response

from infinity_emb.backends.base import SparseRow
from infinity_emb.embedding import Embeddings, Span
from infinity_emb.primitives import EmbeddingEncodingFormat
from infinity_emb.server.vector_bytes import ByteFormat, Vector

Entry: TypeAlias = "Vector | SparseRow"
Column: TypeAlias = "Sequence[Vector] | Sequence[SparseRow]"
# Member of an answer → what it holds for each input.
Columns: TypeAlias = "Mapping[str, Column]"
NameColumns: TypeAlias = "Callable[[Embeddings], Columns]"

# Encoding holds the event loop: about a millisecond for this many values as text.
VALUES_PER_SLICE = 65_536
_LITTLE_ENDIAN = ByteFormat()


def name_embedding(answer: Embeddings) -> Columns:
    """`embedding` is what there is: a vector, or a matrix where that is multi-vector."""
    vectors = answer.dense if answer.dense is not None else answer.multivector
    assert vectors is not None, "a request that names no outputs is for vectors"
    return {"embedding": vectors}


def name_outputs(answer: Embeddings) -> Columns:
    """Dense, sparse and multi-vector each have a member of their own."""
    columns: dict[str, Column | None] = {
        "embedding": answer.dense,
        "sparse_embedding": answer.sparse,
        "multivector_embedding": answer.multivector,
    }
    return {name: column for name, column in columns.items() if column is not None}


def name_embeddings(answer: Embeddings) -> Columns:
    """Multi-vectors as Jina names them."""
    assert answer.multivector is not None, "an engine answers what it was asked for"
    return {"embeddings": answer.multivector}


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How vectors are written.

    byte_format: of base64 and bytes.
    name_columns: which members the answer's outputs are written to.
    """

    format: EmbeddingEncodingFormat = EmbeddingEncodingFormat.float
    byte_format: ByteFormat = _LITTLE_ENDIAN
    name_columns: NameColumns = name_embedding

    @property
    def is_binary(self) -> bool:
        """Whether the body is not JSON."""
        return self.format in (EmbeddingEncodingFormat.bytes, EmbeddingEncodingFormat.bytes_only)


def json_response(
    content: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A response of JSON; numpy arrays allowed."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def task_response(task: str, results: Mapping[str, object], *, model: str, num_tokens: int) -> Response:
    """What a task answers: its name, its results under their member, and what all answers have."""
    return json_response({"object": task, **results, **_describe_answer(model, num_tokens)})


async def embeddings_response(answer: Embeddings, *, encoding: Encoding, model: str) -> Response:
    """The OpenAI answer, one member of `data` per input, in order; or vLLM's, of bytes.

    Source: https://platform.openai.com/docs/api-reference/embeddings
    """
    columns = encoding.name_columns(answer)
    if encoding.is_binary:
        [rows] = columns.values()
        return await _bytes_response(rows, encoding, _describe_answer(model, answer.num_tokens))
    make = _member_maker(columns, encoding, answer.spans)
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
    slices = []
    for part in _split(num_members, num_values):
        if part.start:
            await asyncio.sleep(0)
        slices.append(_encode_members([make_member(index) for index in part]))
    return Fragment(b"[" + b",".join(slices) + b"]")


def base64_writer(byte_format: ByteFormat) -> Callable[[Vector], str]:
    """What writes an array's bytes, row by row: of its values, or one per 8 bits of a binary vector."""
    convert = byte_format.converter()
    return lambda array: pybase64.b64encode_as_string(convert(array).data)


to_base64 = base64_writer(_LITTLE_ENDIAN)


async def _bytes_response(rows: Any, encoding: Encoding, about: Mapping[str, object]) -> Response:
    """The bytes of all rows, one after the other; where each one stands is told by a header, if at all.

    Source: `build_pooling_bytes_streaming_response` of vLLM 0.33.
    """
    convert = encoding.byte_format.converter()
    slices = []
    for part in _split(len(rows), _num_values({"": rows})):
        if part.start:
            await asyncio.sleep(0)
        slices.append(convert(np.concatenate(rows[part.start : part.stop], axis=None)).tobytes())
    headers = {}
    if encoding.format is EmbeddingEncodingFormat.bytes:
        headers["metadata"] = _to_header({**about, "data": encoding.byte_format.describe(rows)})
    return Response(b"".join(slices), headers=headers, media_type="application/octet-stream")


def _to_header(content: object) -> str:
    """JSON of one line and of ASCII alone, which is what headers hold."""
    text = orjson.dumps(content).decode()
    return text if text.isascii() else json.dumps(content)


def _describe_answer(model: str, num_tokens: int) -> dict[str, object]:
    return {
        "model": model,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        "id": f"infinity-{uuid.uuid4()}",
        "created": int(time.time()),
    }


def _split(num_members: int, num_values: int) -> Iterator[range]:
    """The members in parts, between which other requests get turns."""
    size = max(1, VALUES_PER_SLICE * num_members // max(1, num_values))
    for start in range(0, num_members, size):
        yield range(start, min(start + size, num_members))


def _member_maker(
    columns: Columns, encoding: Encoding, spans: Sequence[Span] | None
) -> Callable[[int], object]:
    """Index → member of `data`."""
    is_base64 = encoding.format is EmbeddingEncodingFormat.base64
    write_vector = base64_writer(encoding.byte_format) if is_base64 else np.ascontiguousarray
    writers = [(name, column, _writer_of(column[0], write_vector)) for name, column in columns.items()]
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


def _writer_of(entry: Entry, write_vector: Callable[[Any], object]) -> Callable[[Any], object]:
    return _describe_sparse if isinstance(entry, SparseRow) else write_vector


def _describe_sparse(row: SparseRow) -> object:
    return {"indices": np.ascontiguousarray(row.indices), "values": np.ascontiguousarray(row.values)}


def _is_matrix(entry: Entry) -> bool:
    return not isinstance(entry, SparseRow) and entry.ndim == 2


def _num_values(columns: Columns) -> int:
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
