"""Convert vectors to bytes in the dtypes and byte orders that clients of vLLM request.

Source of names and formats: `vllm/utils/serial_utils.py` of vLLM 0.33.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from infinity_emb.server.schemas.embeddings import EmbedDtype, Endianness

Vector = npt.NDArray[Any]

_DTYPES: dict[EmbedDtype, npt.DTypeLike] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteFormat:
    """The dtype and byte order of encoded vectors.

    embed_dtype: None keeps the dtype of the vector.
    """

    embed_dtype: EmbedDtype | None = None
    endianness: Endianness = "little"

    def make_converter(self) -> Callable[[Vector], Vector]:
        """Return a function that converts an array to one of the same shape whose buffer holds the bytes.

        It takes float32 with an `embed_dtype`, else any dtype. Values beyond the range of `embed_dtype`
        become its largest finite value.
        """
        is_native = self.endianness in ("native", sys.byteorder)
        if self.embed_dtype is None:
            return np.ascontiguousarray if is_native else _swap
        convert = partial(_convert, dtype=np.dtype(_DTYPES[self.embed_dtype]))
        return convert if is_native else lambda vectors: _swap(convert(vectors))

    def describe(self, vectors: Sequence[Vector]) -> list[dict[str, object]]:
        """Describe the range, dtype and shape of each vector in the concatenated bytes."""
        dtype = vectors[0].dtype if self.embed_dtype is None else np.dtype(_DTYPES[self.embed_dtype])
        name = self.embed_dtype or dtype.name
        ends = np.cumsum([vector.size * dtype.itemsize for vector in vectors]).tolist()
        return [
            {
                "index": index,
                "embed_dtype": name,
                "endianness": self.endianness,
                "start": start,
                "end": end,
                "shape": vector.shape,
            }
            for index, (vector, start, end) in enumerate(zip(vectors, [0, *ends], ends, strict=False))
        ]


def _swap(vectors: Vector) -> Vector:
    return np.ascontiguousarray(vectors).byteswap()


def _convert(vectors: Vector, dtype: np.dtype[Any]) -> Vector:
    """Convert to a dtype and view it as integers, because numpy cannot byte-swap or export bfloat16."""
    largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]  # the only one it leaves untyped
    converted = vectors.clip(-largest, largest).astype(dtype)
    bits: Vector = np.ascontiguousarray(converted).view(f"u{dtype.itemsize}")
    return bits
