"""Convert the results of rows to Arrow columns, JSON and numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infinity_emb.errors import StartupError
from infinity_emb.items import SparseVector


class ResultType(NamedTuple):
    """The type of a job's results, all of which are alike.

    kind: vector, vectors (one per token), sparse, score or labels.
    arrow: pyarrow.DataType of one result.
    dtype, shape: of one result as an array, for a vector or a score.
    """

    kind: str
    arrow: Any
    dtype: npt.DTypeLike | None = None
    shape: tuple[int, ...] = ()


def detect_type(value: Any) -> ResultType:
    """Return the type of results like this one."""
    if isinstance(value, SparseVector):
        fields = [("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))]
        return ResultType("sparse", pa.struct(fields))
    if isinstance(value, float):
        return ResultType("score", pa.float32(), np.dtype(np.float32))
    if isinstance(value, list):
        return ResultType("labels", pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32())])))
    vector = pa.list_(pa.from_numpy_dtype(value.dtype), value.shape[-1])
    if value.ndim == 2:
        return ResultType("vectors", pa.list_(vector), value.dtype)
    return ResultType("vector", vector, value.dtype, value.shape)


def to_array(results: Sequence[Any], result_type: ResultType) -> npt.NDArray[Any]:
    """Return (N, D) vectors in their dtype, or (N,) float32 scores."""
    array = np.array(results, dtype=result_type.dtype)
    return array.reshape(len(results), *result_type.shape)


def to_arrow(results: Sequence[Any], result_type: ResultType) -> Any:
    """Return a pyarrow.Array of the type."""
    if result_type.kind == "vector":
        flat = pa.array(to_array(results, result_type).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, type=result_type.arrow)
    if result_type.kind == "vectors":
        return _join_lists(results, result_type)
    if result_type.kind == "sparse":
        rows = [{"indices": each.indices, "values": each.values} for each in results]
        return pa.array(rows, result_type.arrow)
    return pa.array(results, result_type.arrow)


def to_json(result: Any, result_type: ResultType) -> Any:
    """Return a value that orjson can write."""
    if result_type.kind == "sparse":
        return {"indices": result.indices, "values": result.values}
    return np.ascontiguousarray(result) if isinstance(result, np.ndarray) else result


def check_fits(result_type: ResultType, output_format: str) -> None:
    """Raise StartupError for results that .npy cannot hold."""
    if output_format == "npy" and result_type.kind not in ("vector", "score"):
        raise StartupError(
            "an .npy file holds one vector or one score per row, and these results are"
            f" {result_type.kind}; write Parquet or JSON Lines"
        )


def _join_lists(results: Sequence[npt.NDArray[Any]], result_type: ResultType) -> Any:
    """Return lists of vectors, without a Python object per number."""
    flat = np.concatenate([each.reshape(-1) for each in results] or [np.empty(0, result_type.dtype)])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), type=result_type.arrow.value_type)
    offsets = np.cumsum([0, *map(len, results)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), vectors, type=result_type.arrow)
