"""Vectors → bytes: in which number format and in which order of bytes, as clients of vLLM ask for them.

Knows nothing of requests, JSON or headers.
Source of the formats' names and bytes: `vllm/utils/serial_utils.py` of vLLM 0.33.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[Any]
EmbedDtype = Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]
Endianness = Literal["native", "big", "little"]

_DTYPES: dict[EmbedDtype, npt.DTypeLike] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteFormat:
    """How a vector becomes bytes.

    embed_dtype: None for the number format that it has.
    """

    embed_dtype: EmbedDtype | None = None
    endianness: Endianness = "little"

    def converter(self) -> Callable[[Vector], Vector]:
        """What makes numbers whose own buffer holds the bytes, row by row; of the same shape.

        It takes (...) float32 where there is an `embed_dtype`, else any number format. What is beyond the
        range of `embed_dtype` becomes its largest finite number.
        """
        is_native = self.endianness in ("native", sys.byteorder)
        if self.embed_dtype is None:
            return np.ascontiguousarray if is_native else _swap
        convert = partial(_convert, dtype=np.dtype(_DTYPES[self.embed_dtype]))
        return convert if is_native else lambda vectors: _swap(convert(vectors))

    def describe(self, rows: Sequence[Vector]) -> list[dict[str, object]]:
        """Where each of the rows stands in their bytes, which follow one another, and what it is there."""
        dtype = rows[0].dtype if self.embed_dtype is None else np.dtype(_DTYPES[self.embed_dtype])
        name = self.embed_dtype or dtype.name
        ends = np.cumsum([row.size * dtype.itemsize for row in rows]).tolist()
        return [
            {
                "index": index,
                "embed_dtype": name,
                "endianness": self.endianness,
                "start": start,
                "end": end,
                "shape": row.shape,
            }
            for index, (row, start, end) in enumerate(zip(rows, [0, *ends], ends, strict=False))
        ]


def _swap(vectors: Vector) -> Vector:
    return np.ascontiguousarray(vectors).byteswap()


def _convert(vectors: Vector, dtype: np.dtype[Any]) -> Vector:
    """As whole numbers of the same bytes, which numpy can swap and hand out; it can neither with bfloat16."""
    largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]  # the only one it leaves untyped
    converted = vectors.clip(-largest, largest).astype(dtype)
    bits: Vector = np.ascontiguousarray(converted).view(f"u{dtype.itemsize}")
    return bits
