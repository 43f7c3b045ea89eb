"""An answer as bytes, as it lies on disk: a checksum, the number of tokens, and raw numbers.

    crc32 of key and rest | num_tokens | for each output: kind, rows, width | float32 values

All little-endian; a sparse row has its int32 indices before its values. Knows nothing of files.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

from infinity_emb.backends.base import Rows, SparseRow
from infinity_emb.computed import Entry

_CHECKSUM = struct.Struct("<I")
_NUM_TOKENS = struct.Struct("<I")
_SHAPE = struct.Struct("<III")
_VECTOR, _MATRIX, _SPARSE = range(3)


def pack_entry(key: bytes, entry: Entry) -> bytes:
    """The bytes of what is kept under `key`."""
    parts = [_NUM_TOKENS.pack(entry.num_tokens)]
    for value in entry.values:
        parts += _pack_sparse(value) if isinstance(value, SparseRow) else _pack_rows(value)
    content = b"".join(parts)
    return _CHECKSUM.pack(_crc(key, content)) + content


def unpack_entry(key: bytes, packed: bytes) -> Entry | None:
    """What `pack_entry` made of an entry for that key, as read-only views; None for anything else."""
    content = packed[_CHECKSUM.size :]
    if packed[: _CHECKSUM.size] != _CHECKSUM.pack(_crc(key, content)):
        return None
    values: list[Rows | SparseRow] = []
    start = _NUM_TOKENS.size
    while start < len(content):
        kind, num_rows, width = _SHAPE.unpack_from(content, start)
        start += _SHAPE.size
        if kind == _SPARSE:
            indices = np.frombuffer(content, "<i4", width, start).astype(np.int32, copy=False)
            start += indices.nbytes
        rows = np.frombuffer(content, "<f4", num_rows * width, start).astype(np.float32, copy=False)
        start += rows.nbytes
        if kind == _SPARSE:
            values.append(SparseRow(indices, rows))
        else:
            values.append(rows.reshape(num_rows, width) if kind == _MATRIX else rows)
    return Entry(_NUM_TOKENS.unpack_from(content)[0], tuple(values))


def _crc(key: bytes, content: bytes) -> int:
    """With the key: what stands under another key is another's answer."""
    return zlib.crc32(content, zlib.crc32(key))


def _pack_rows(rows: Rows) -> list[bytes]:
    num_rows, width = rows.shape if rows.ndim == 2 else (1, len(rows))
    kind = _MATRIX if rows.ndim == 2 else _VECTOR
    return [_SHAPE.pack(kind, num_rows, width), rows.astype("<f4", copy=False).tobytes()]


def _pack_sparse(row: SparseRow) -> list[bytes]:
    return [
        _SHAPE.pack(_SPARSE, 1, len(row.indices)),
        row.indices.astype("<i4", copy=False).tobytes(),
        row.values.astype("<f4", copy=False).tobytes(),
    ]
