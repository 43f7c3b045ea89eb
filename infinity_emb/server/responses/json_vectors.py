"""Encode vectors as response bodies without creating Python numbers.

numpy arrays go straight through orjson, through base64 from their buffer, or unchanged into a binary body.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import orjson
import pybase64
from orjson import Fragment
from starlette.responses import Response

from infinity_emb.engine.results import Embeddings, Span
from infinity_emb.items import SparseVector
from infinity_emb.server.random_ids import make_random_id
from infinity_emb.server.responses.binary_vectors import ByteFormat, Vector
from infinity_emb.server.responses.encoding import Encoding, NamedOutputs
from infinity_emb.server.responses.sliced import (
    VALUES_PER_SLICE,
    Base64Text,
    JsonList,
    dump,
    fill_gaps,
    make_response,
    split_items,
)
from infinity_emb.types import EmbeddingEncodingFormat

# A value is encoded as base64 in this fraction of the time that it takes as text.
_BASE64_SPEED = 8

AnyVector: TypeAlias = "Vector | SparseVector"


def json_response(
    content: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Make a JSON response; `content` may hold numpy arrays and `JsonList`s."""
    text, gaps = dump(content)
    if not gaps:
        return Response(text, status, headers, "application/json")
    return make_response(
        fill_gaps(text, gaps),
        num_values=sum(gap.num_values for gap in gaps),
        status=status,
        headers=headers,
        media_type="application/json",
    )


def task_response(task: str, results: Mapping[str, object], *, model: str, num_tokens: int) -> Response:
    """Make the response of a task: its results, and the fields that all tasks share."""
    return json_response({"object": task, **results, **_describe_request(model, num_tokens)})


def embeddings_response(embeddings: Embeddings, *, encoding: Encoding, model: str) -> Response:
    """Make the response of OpenAI, one entry of `data` per input, or the binary response of vLLM.

    Source: https://platform.openai.com/docs/api-reference/embeddings
    """
    outputs = encoding.name_outputs(embeddings)
    if encoding.is_binary:
        [vectors] = outputs.values()
        return binary_response(vectors, encoding, model=model, num_tokens=embeddings.num_tokens)
    make_entry = _choose_entry_writer(outputs, encoding, embeddings.spans)
    num_values = _count_values(outputs)
    if encoding.format is EmbeddingEncodingFormat.base64:
        num_values //= _BASE64_SPEED
    data = JsonList(make_entry, len(next(iter(outputs.values()))), num_values)
    return task_response("list", {"data": data}, model=model, num_tokens=embeddings.num_tokens)


def sparse_response(vectors: Sequence[SparseVector]) -> Response:
    """Make a response with a list of `{"index": …, "value": …}` per vector."""
    num_values = _count_values({"sparse": vectors})
    return json_response(JsonList(lambda index: _encode_pairs(vectors[index]), len(vectors), num_values))


def write_numbers(array: Vector) -> object:
    """Return a vector or a matrix as JSON has it: a list of numbers, or of lists."""
    if array.ndim == 2 and array.size > VALUES_PER_SLICE:
        return JsonList(lambda index: np.ascontiguousarray(array[index]), len(array), array.size)
    return np.ascontiguousarray(array)


def base64_writer(byte_format: ByteFormat) -> Callable[[Vector], object]:
    """Return a function that encodes an array's bytes, row by row."""
    convert = byte_format.make_converter()

    def write(array: Vector) -> object:
        converted = convert(array)
        if array.size > VALUES_PER_SLICE:
            return Base64Text(converted)
        return pybase64.b64encode_as_string(converted.data)

    return write


to_base64 = base64_writer(ByteFormat())


def binary_response(vectors: Any, encoding: Encoding, *, model: str, num_tokens: int) -> Response:
    """Concatenate the bytes of all vectors; a header describes them unless the format has none.

    Source: `build_pooling_bytes_streaming_response` of vLLM 0.33.
    """
    convert = encoding.byte_format.make_converter()
    num_values = _count_values({"": vectors})
    pieces = (
        convert(np.concatenate(vectors[part.start : part.stop], axis=None)).tobytes()
        for part in split_items(len(vectors), num_values)
    )
    headers = {}
    if encoding.format is EmbeddingEncodingFormat.bytes:
        metadata = _describe_request(model, num_tokens)
        headers["metadata"] = _to_header({**metadata, "data": encoding.byte_format.describe(vectors)})
    return make_response(
        pieces, num_values=num_values, headers=headers, media_type="application/octet-stream"
    )


def _to_header(content: object) -> str:
    """Encode JSON in ASCII, as headers require."""
    text = orjson.dumps(content).decode()
    return text if text.isascii() else json.dumps(content)


def _describe_request(model: str, num_tokens: int) -> dict[str, object]:
    digits = make_random_id()  # as a UUID, which `uuid.uuid4` takes far longer to make
    return {
        "model": model,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        "id": f"infinity-{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}",
        "created": int(time.time()),
    }


def _choose_entry_writer(
    outputs: NamedOutputs, encoding: Encoding, spans: Sequence[Span] | None
) -> Callable[[int], object]:
    """Return a function from an index to its entry of `data`, a fast one if each has only a vector."""
    vectors = outputs.get("embedding")
    is_vectors = vectors is not None and len(outputs) == 1 and spans is None and _is_contiguous(vectors[0])
    if not is_vectors or encoding.format is not EmbeddingEncodingFormat.float:
        return _make_entry_writer(outputs, encoding, spans)
    assert vectors is not None
    return lambda index: {"object": "embedding", "embedding": vectors[index], "index": index}


def _is_contiguous(vector: AnyVector) -> bool:
    """Return true for a contiguous vector; then all are, being rows of one array."""
    return isinstance(vector, np.ndarray) and vector.ndim == 1 and vector.flags.c_contiguous


def _make_entry_writer(
    outputs: NamedOutputs, encoding: Encoding, spans: Sequence[Span] | None
) -> Callable[[int], object]:
    """Return a function from an index to its entry of `data`."""
    is_base64 = encoding.format is EmbeddingEncodingFormat.base64
    write_vector = base64_writer(encoding.byte_format) if is_base64 else write_numbers
    writers = [(name, output, _choose_writer(output[0], write_vector)) for name, output in outputs.items()]
    matrices = next((output for output in outputs.values() if _is_matrix(output[0])), None)

    def make_entry(index: int) -> object:
        entry: dict[str, object] = {"object": "embedding"}
        for name, output, write in writers:
            entry[name] = write(output[index])
        entry["index"] = index
        if is_base64 and matrices is not None:
            entry["shape"] = np.shape(matrices[index])
        if spans is not None:
            entry["late_chunking"] = {"char_range": list(spans[index])}
        return entry

    return make_entry


def _choose_writer(vector: AnyVector, write_vector: Callable[[Any], object]) -> Callable[[Any], object]:
    return _describe_sparse if isinstance(vector, SparseVector) else write_vector


def _describe_sparse(vector: SparseVector) -> object:
    return {"indices": np.ascontiguousarray(vector.indices), "values": np.ascontiguousarray(vector.values)}


def _is_matrix(vector: AnyVector) -> bool:
    return not isinstance(vector, SparseVector) and vector.ndim == 2


def _count_values(outputs: NamedOutputs) -> int:
    return sum(
        2 * len(vector.indices) if isinstance(vector, SparseVector) else vector.size
        for output in outputs.values()
        for vector in output
    )


def _encode_pairs(vector: SparseVector) -> Fragment:
    """Encode indices and values as two lists, which is fast, and interleave the texts."""
    if not len(vector.indices):
        return Fragment(b"[]")
    texts = (_encode_items(np.ascontiguousarray(array)).split(b",") for array in vector)
    pairs = map(b'{"index":%b,"value":%b}'.__mod__, zip(*texts, strict=True))
    return Fragment(b"[" + b",".join(pairs) + b"]")


def _encode_items(items: list[object] | Vector) -> bytes:
    """Encode a list without its brackets."""
    return orjson.dumps(items, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
