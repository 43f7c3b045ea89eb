"""Write the rows of windows to parts, and join parts to a shard: Parquet, JSON Lines, .npy or Lance.

All formats but JSON Lines have a header or footer that describes the whole shard, so parts have formats of
their own that are quick to write and read.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from infinity_emb.bulk import lance_dataset
from infinity_emb.bulk.json_columns import RAW_JSON
from infinity_emb.bulk.results import ResultType, to_array, to_arrow, to_json
from infinity_emb.storage.files import write_durably, write_folder_durably

_JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFormat:
    """A way to write shards.

    suffix: of a shard in a folder.
    write_part: writes the kept rows (pyarrow.Table) and their results.
    write_shard: makes a shard of parts, all or nothing; raises OSError.
    """

    suffix: str
    write_part: Callable[[BinaryIO, Any, Sequence[Any]], None]
    write_shard: Callable[[Path, Sequence[Path]], None]


def make_format(name: str, kept: Any, column: str, result_type: ResultType) -> ShardFormat:
    """Return the format of a name.

    kept: pyarrow.Schema of the columns that are copied.
    column: of the results.
    Raises StartupError for columns that a Lance dataset cannot have.
    """
    if name == "npy":
        return ShardFormat(
            suffix=".npy",
            write_part=lambda file, _, results: _write_array(file, results, result_type),
            write_shard=_as_file(lambda file, parts: _join_arrays(file, parts, result_type)),
        )
    if name == "jsonl":
        return ShardFormat(
            suffix=".jsonl",
            write_part=lambda file, rows, results: _write_lines(file, rows, results, column, result_type),
            write_shard=_as_file(join_bytes),
        )
    fields = [field for field in kept if field.name != RAW_JSON]
    schema = pa.schema([*fields, pa.field(column, result_type.arrow)])
    if name == "lance":
        lance_dataset.check_schema(schema)
        write_shard = _as_folder(lambda path, parts: lance_dataset.write(path, _read_tables(parts), schema))
    else:
        write_shard = _as_file(lambda file, parts: _join_tables(file, parts, schema))
    return ShardFormat(
        suffix=f".{name}",
        write_part=lambda file, rows, results: _write_table(file, rows, results, schema, result_type),
        write_shard=write_shard,
    )


def _as_file(join: Callable[[BinaryIO, Sequence[Path]], None]) -> Callable[[Path, Sequence[Path]], None]:
    return lambda path, parts: write_durably(path, lambda file: join(file, parts))


def _as_folder(join: Callable[[Path, Sequence[Path]], None]) -> Callable[[Path, Sequence[Path]], None]:
    return lambda path, parts: write_folder_durably(path, lambda folder: join(folder, parts))


def _write_table(file: BinaryIO, rows: Any, results: Sequence[Any], schema: Any, kind: ResultType) -> None:
    kept = [rows.column(name) for name in schema.names[:-1]]
    with pa.ipc.new_file(file, schema) as writer:
        writer.write_table(pa.table([*kept, to_arrow(results, kind)], schema=schema))


def _join_tables(file: BinaryIO, parts: Sequence[Path], schema: Any) -> None:
    """Write a row group per part. Vectors of floats are all different, so no dictionary is tried for them."""
    with pq.ParquetWriter(file, schema, use_dictionary=schema.names[:-1], compression="zstd") as writer:
        for table in _read_tables(parts):
            writer.write_table(table)


def _read_tables(parts: Sequence[Path]) -> Iterator[Any]:
    """Yield the pyarrow.Table of each part."""
    for part in parts:
        with pa.OSFile(str(part)) as source:
            yield pa.ipc.open_file(source).read_all()


def _write_array(file: BinaryIO, results: Sequence[Any], kind: ResultType) -> None:
    file.write(to_array(results, kind).tobytes())


def _join_arrays(file: BinaryIO, parts: Sequence[Path], kind: ResultType) -> None:
    dtype = np.dtype(kind.dtype)
    row_bytes = dtype.itemsize * int(np.prod(kind.shape))
    num_rows = sum(part.stat().st_size for part in parts) // row_bytes
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (num_rows, *kind.shape),
    }
    np.lib.format.write_array_header_1_0(file, header)
    join_bytes(file, parts)


def _write_lines(file: BinaryIO, rows: Any, results: Sequence[Any], column: str, kind: ResultType) -> None:
    for start, result in zip(_iterate_starts(rows), results, strict=True):
        key = orjson.dumps(column)
        value = orjson.dumps(to_json(result, kind), option=_JSON_OPTIONS)
        separator = b"," if start[1:].strip() else b""
        file.write(b"%b%b%b:%b}\n" % (start, separator, key, value))


def _iterate_starts(rows: Any) -> Iterator[bytes]:
    """Yield the JSON of each row without its last brace."""
    if rows.schema.names == [RAW_JSON]:
        for line in rows.column(0).to_pylist():
            yield (line or b"{}")[:-1]
        return
    for row in _prepare_for_json(rows).to_pylist():
        yield orjson.dumps(row, default=_write_value, option=_JSON_OPTIONS)[:-1]


def _prepare_for_json(rows: Any) -> Any:
    """Truncate times to microseconds, the resolution of Python's datetime."""
    columns = [
        column.cast(pa.timestamp("us", column.type.tz), safe=False)
        if pa.types.is_timestamp(column.type)
        else column
        for column in rows.columns
    ]
    return pa.table(columns, names=rows.schema.names)


def _write_value(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def join_bytes(file: BinaryIO, parts: Sequence[Path]) -> None:
    """Append the contents of files to a file."""
    for part in parts:
        with part.open("rb") as source:
            shutil.copyfileobj(source, file, 2**20)
