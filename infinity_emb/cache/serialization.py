"""Serialize outputs for the disk: a checksum, the number of tokens, and arrays.

    crc32 of key and rest | num_tokens | for each output: kind, num_rows, width | float32 values

All numbers are little-endian; a sparse vector has its int32 indices before its values.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

from infinity_emb.items import Float32Array, ItemOutput, SparseVector

_CHECKSUM = struct.Struct("<I")
_NUM_TOKENS = struct.Struct("<I")
_SHAPE = struct.Struct("<III")
_VECTOR, _MATRIX, _SPARSE = range(3)


def pack_output(key: bytes, output: ItemOutput) -> bytes:
    """Serialize an output that is stored under `key`."""
    parts = [_NUM_TOKENS.pack(output.num_tokens)]
    for value in output.values:
        parts += _pack_sparse(value) if isinstance(value, SparseVector) else _pack_array(value)
    content = b"".join(parts)
    return _CHECKSUM.pack(_compute_checksum(key, content)) + content


def unpack_output(key: bytes, packed: bytes) -> ItemOutput | None:
    """Return what `pack_output` serialized for that key, as read-only views; None when it is corrupt."""
    content = packed[_CHECKSUM.size :]
    if packed[: _CHECKSUM.size] != _CHECKSUM.pack(_compute_checksum(key, content)):
        return None
    values: list[Float32Array | SparseVector] = []
    start = _NUM_TOKENS.size
    while start < len(content):
        kind, num_rows, width = _SHAPE.unpack_from(content, start)
        start += _SHAPE.size
        if kind == _SPARSE:
            indices = np.frombuffer(content, "<i4", width, start).astype(np.int32, copy=False)
            start += indices.nbytes
        numbers = np.frombuffer(content, "<f4", num_rows * width, start).astype(np.float32, copy=False)
        start += numbers.nbytes
        if kind == _SPARSE:
            values.append(SparseVector(indices, numbers))
        else:
            values.append(numbers.reshape(num_rows, width) if kind == _MATRIX else numbers)
    return ItemOutput(_NUM_TOKENS.unpack_from(content)[0], tuple(values))


def _compute_checksum(key: bytes, content: bytes) -> int:
    """Cover the key, so that a value under another key is found to be corrupt."""
    return zlib.crc32(content, zlib.crc32(key))


def _pack_array(value: Float32Array) -> list[bytes]:
    num_rows, width = value.shape if value.ndim == 2 else (1, len(value))
    kind = _MATRIX if value.ndim == 2 else _VECTOR
    return [_SHAPE.pack(kind, num_rows, width), value.astype("<f4", copy=False).tobytes()]


def _pack_sparse(value: SparseVector) -> list[bytes]:
    return [
        _SHAPE.pack(_SPARSE, 1, len(value.indices)),
        value.indices.astype("<i4", copy=False).tobytes(),
        value.values.astype("<f4", copy=False).tobytes(),
    ]
