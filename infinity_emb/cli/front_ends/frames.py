"""Encode messages between processes as frames: a JSON header, then the raw memory of arrays.

A frame is a prefix of 16 bytes (the lengths of the header and of the rest), the header, and the arrays in the
order of the header's `arrays`, which holds their dtypes and shapes. All begin at multiples of 8 bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson

Header: TypeAlias = "dict[str, Any]"
Array: TypeAlias = "npt.NDArray[Any]"

_PREFIX = struct.Struct("<QQ")  # bytes of the header, bytes of the arrays
_ALIGNMENT = 8


class Frame(NamedTuple):
    """A received message. Its arrays are views of memory that nothing else uses."""

    header: Header
    arrays: list[Array]


def pack_frame(header: Header, arrays: Sequence[Array] = ()) -> list[bytes | memoryview]:
    """Return the parts of a frame; those of arrays are not copied."""
    if arrays:
        header = {**header, "arrays": [(array.dtype.str, array.shape) for array in arrays]}
    text = orjson.dumps(header)
    text += b" " * (-len(text) % _ALIGNMENT)
    parts: list[bytes | memoryview] = [b"", text]
    size = 0
    for array in arrays:
        if array.size:
            parts.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        padding = -array.nbytes % _ALIGNMENT
        if padding:
            parts.append(bytes(padding))
        size += array.nbytes + padding
    parts[0] = _PREFIX.pack(len(text), size)
    return parts


class FrameReader:
    """Find the frames in a stream of bytes."""

    def __init__(self) -> None:
        self._received = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that are complete now."""
        self._received += data
        start, end = 0, len(self._received)
        while end - start >= _PREFIX.size:
            num_header_bytes, num_array_bytes = _PREFIX.unpack_from(self._received, start)
            body = start + _PREFIX.size
            start_of_next = body + num_header_bytes + num_array_bytes
            if start_of_next > end:
                break
            yield _unpack(self._received[body:start_of_next], num_header_bytes)
            start = start_of_next
        if start:
            del self._received[:start]


def _unpack(body: bytearray, num_header_bytes: int) -> Frame:
    header: Header = orjson.loads(memoryview(body)[:num_header_bytes])
    arrays: list[Array] = []
    offset = num_header_bytes
    for name, shape in header.pop("arrays", ()):
        dtype = np.dtype(name)
        count = math.prod(shape)
        arrays.append(np.frombuffer(body, dtype, count, offset if count else 0).reshape(shape))
        num_bytes = count * dtype.itemsize
        offset += num_bytes + -num_bytes % _ALIGNMENT
    return Frame(header, arrays)
