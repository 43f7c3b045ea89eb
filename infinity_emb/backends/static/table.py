"""Read the table of a static model, one row per token id, from a safetensors file.

A float32 table stays in the file, mapped into memory: it costs no time at start, and processes share it.
So the file must not be modified while it is served. Source of the file format:
https://github.com/huggingface/safetensors#format; of the names in it: sentence-transformers'
StaticEmbedding and model2vec.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infinity_emb.errors import StartupError
from infinity_emb.items import Float32Array

Array = npt.NDArray[Any]  # in the file's number format

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U8": "<u1",
}


def read_table(path: Path) -> Float32Array:
    """Read the vector of each token id.

    model2vec may store fewer vectors than tokens: `mapping` gives the row of a token, `weights` its factor.
    Both are applied to the table.
    Returns (V, D) float32, read-only if it is a view of the file.
    Raises StartupError naming the file.
    """
    tensors = _map_tensors(path)
    table = tensors.get("embedding.weight")
    if table is not None:
        return _as_rows(_checked_table(table, path))
    if "embeddings" not in tensors:
        raise StartupError(
            f"{path} has neither 'embedding.weight' nor 'embeddings', it has {sorted(tensors)};"
            " save the model again"
        )
    table = _checked_table(tensors["embeddings"], path)
    if "mapping" in tensors:
        table = table[_checked_mapping(tensors["mapping"], len(table), path)]
    if "weights" in tensors:
        weights = _checked_weights(tensors["weights"], len(table), path)
        table = table.astype(np.promote_types(table.dtype, np.float32)) * weights[:, None]
    return _as_rows(table)


def _map_tensors(path: Path) -> Mapping[str, Array]:
    """Return the tensors of the file as views of it."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        (header_size,) = struct.unpack_from("<Q", data)
        start = 8 + header_size
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        tensors = {name: _view(data, start, **entry) for name, entry in header.items()}
    except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError, struct.error) as exc:
        raise StartupError(
            f"{path} cannot be read as a safetensors file ({type(exc).__name__}: {exc});"
            " download or save the model again"
        ) from exc
    if hasattr(data, "madvise") and hasattr(mmap, "MADV_WILLNEED"):
        data.madvise(mmap.MADV_WILLNEED)  # read ahead, so that the first texts do not wait for the disk
    return tensors


def _view(data: mmap.mmap, start: int, *, dtype: str, shape: list[int], data_offsets: list[int]) -> Array:
    first, last = data_offsets
    numbers = np.frombuffer(data, _DTYPES[dtype], math.prod(shape), start + first)
    if last - first != numbers.nbytes:
        raise ValueError(f"{last - first} bytes for {shape} of {dtype}")
    if dtype == "BF16":  # the upper half of a float32
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.reshape(shape)


def _as_rows(table: Array) -> Float32Array:
    """Convert to aligned float32, without a copy if it is already."""
    return np.require(table, np.float32, ["C_CONTIGUOUS", "ALIGNED"])


def _checked_table(table: Array, path: Path) -> Array:
    if table.ndim != 2 or not table.size:
        raise StartupError(
            f"{path} holds a table of shape {table.shape}, but each token needs a row; save the model again"
        )
    return table


def _checked_mapping(mapping: Array, num_rows: int, path: Path) -> Array:
    if mapping.ndim != 1 or mapping.dtype.kind not in "iu":
        raise StartupError(
            f"{path} holds a mapping of shape {mapping.shape} and dtype {mapping.dtype}, but needs one"
            " row number per token; save the model again"
        )
    outside = mapping[(mapping < 0) | (mapping >= num_rows)]
    if len(outside):
        raise StartupError(
            f"{path} maps {len(outside)} tokens to rows that it does not have, such as {outside[0]} of"
            f" {num_rows}; save the model again"
        )
    return mapping


def _checked_weights(weights: Array, num_tokens: int, path: Path) -> Array:
    if weights.shape != (num_tokens,):
        raise StartupError(
            f"{path} holds weights of shape {weights.shape} for {num_tokens} tokens; save the model again"
        )
    return weights
