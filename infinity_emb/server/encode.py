"""Vectors → the bytes of a response, without a Python number in between.

numpy rows go straight through orjson, or through base64 from their buffer. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import orjson
import pybase64
from starlette.responses import Response

from infinity_emb.primitives import EmbeddingEncodingFormat

Vector = npt.NDArray[Any]

# Encoding holds the event loop: about a millisecond for this many values as text.
VALUES_PER_SLICE = 65_536


def json_response(
    content: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A response of JSON; numpy arrays allowed."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status_code=status, headers=headers, media_type="application/json")


async def embeddings_response(
    vectors: Sequence[Vector], *, encoding_format: EmbeddingEncodingFormat, model: str, num_tokens: int
) -> Response:
    """The OpenAI answer for one (D,) array per input, in order.

    Source: https://platform.openai.com/docs/api-reference/embeddings
    """
    return json_response(
        {
            "object": "list",
            "data": orjson.Fragment(await _encode_list(vectors, encoding_format)),
            "model": model,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
            "id": f"infinity-{uuid.uuid4()}",
            "created": int(time.time()),
        }
    )


def to_base64(vector: Vector) -> str:
    """The array's own bytes, little-endian: float32 values, or one byte per 8 bits of a binary vector."""
    little_endian = vector if sys.byteorder == "little" else vector.byteswap()
    return pybase64.b64encode_as_string(little_endian.data)


async def _encode_list(vectors: Sequence[Vector], encoding_format: EmbeddingEncodingFormat) -> bytes:
    """The `data` list. Other requests get their turn between slices."""
    num_rows = max(1, VALUES_PER_SLICE // len(vectors[0]))
    slices = []
    for start in range(0, len(vectors), num_rows):
        if start:
            await asyncio.sleep(0)
        slices.append(_encode_slice(vectors[start : start + num_rows], start, encoding_format))
    return b"[" + b",".join(slices) + b"]"


def _encode_slice(vectors: Sequence[Vector], start: int, encoding_format: EmbeddingEncodingFormat) -> bytes:
    """Members of the `data` list without its brackets; `start` is the first one's index."""
    is_base64 = encoding_format is EmbeddingEncodingFormat.base64
    members = [
        {"object": "embedding", "embedding": to_base64(vector) if is_base64 else vector, "index": index}
        for index, vector in enumerate(vectors, start)
    ]
    return orjson.dumps(members, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
