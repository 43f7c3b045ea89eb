"""Copy the fields of JSON objects: unchanged to JSON Lines, or as typed columns to Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import orjson
import pyarrow as pa

from infinity_emb.bulk.columns import Columns
from infinity_emb.bulk.rows import Rejected
from infinity_emb.errors import StartupError

# The column that holds whole objects as JSON; no column of a file has this name.
RAW_JSON = "\0json"
# Column types are inferred from this many rows.
SAMPLE_ROWS = 10_000

JsonRow = dict[str, Any] | Rejected


class Converted(NamedTuple):
    """Rows, and their kept part; rows that cannot be kept are rejected.

    batch: pyarrow.RecordBatch, without data in rejected rows.
    """

    batch: Any
    rows: Sequence[JsonRow]


class JsonColumns(Protocol):
    """A way to keep the fields of objects.

    schema: pyarrow.Schema of the batches.
    """

    schema: Any

    def convert(self, rows: Sequence[JsonRow], lines: Sequence[bytes]) -> Converted:
        """Return what is kept of rows.

        lines: the JSON of each row.
        """


class RawColumns:
    """Keep the JSON of objects, with all of their fields or with some."""

    schema = pa.schema([(RAW_JSON, pa.binary())])

    def __init__(self, columns: Columns) -> None:
        self._columns = columns

    def convert(self, rows: Sequence[JsonRow], lines: Sequence[bytes]) -> Converted:
        """Return the lines; a row that has a field with the name of the result is rejected."""
        kept: list[bytes | None] = []
        checked = [self._check(row, line) for row, line in zip(rows, lines, strict=True)]
        for row, line in zip(checked, lines, strict=True):
            if isinstance(row, Rejected):
                kept.append(None)
            elif self._columns.kept is None:
                kept.append(line.strip())
            else:
                kept.append(orjson.dumps({name: row[name] for name in self._columns.kept if name in row}))
        return Converted(pa.record_batch([pa.array(kept, pa.binary())], schema=self.schema), checked)

    def _check(self, row: JsonRow, line: bytes) -> JsonRow:
        is_taken = self._columns.kept is None and self._columns.result in row
        if isinstance(row, Rejected) or not is_taken:
            return row
        reason = f"the row has a column {self._columns.result!r} already; choose another --output-column"
        return Rejected(reason, line.decode("utf-8", "replace"))


class TypedColumns:
    """Keep the fields of objects as columns with the types of the first rows."""

    def __init__(self, columns: Columns, sample: Sequence[dict[str, Any]]) -> None:
        names = list(dict.fromkeys(name for row in sample for name in row))
        self._columns = columns
        self.schema = pa.schema(
            [
                (name, pa.string() if name in columns.read else _infer_type(name, sample))
                for name in columns.select_kept(names)
            ]
        )
        self._type = pa.struct(list(self.schema))
        self._known = set(self.schema.names)

    def convert(self, rows: Sequence[JsonRow], lines: Sequence[bytes]) -> Converted:
        """Return typed columns; a row with a value of another type, or another column, is rejected."""
        checked = [self._check_names(row, line) for row, line in zip(rows, lines, strict=True)]
        kept = [None if isinstance(row, Rejected) else row for row in checked]
        try:
            array = pa.array(kept, self._type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            checked = [self._check_types(row, line) for row, line in zip(checked, lines, strict=True)]
            array = pa.array([None if isinstance(row, Rejected) else row for row in checked], self._type)
        arrays = array.flatten()  # unlike field(), with the nulls of the rows
        return Converted(pa.record_batch(arrays, schema=self.schema), checked)

    def _check_names(self, row: JsonRow, line: bytes) -> JsonRow:
        if isinstance(row, Rejected) or self._columns.kept is not None or row.keys() <= self._known:
            return row
        name = next(name for name in row if name not in self._known)
        return Rejected(
            f"column {name!r} is in none of the first {SAMPLE_ROWS} rows; name the columns to copy with"
            " --keep-columns, or write JSON Lines",
            line.decode("utf-8", "replace"),
        )

    def _check_types(self, row: JsonRow, line: bytes) -> JsonRow:
        if isinstance(row, Rejected):
            return row
        for field in self.schema:
            try:
                pa.array([row.get(field.name)], field.type)
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                reason = (
                    f"column {field.name!r} is not {field.type} as in the first rows; leave it out with"
                    " --keep-columns, or write JSON Lines"
                )
                return Rejected(reason, line.decode("utf-8", "replace"))
        return row


class NoColumns:
    """Keep nothing."""

    schema = pa.schema([(RAW_JSON, pa.null())])

    def convert(self, rows: Sequence[JsonRow], lines: Sequence[bytes]) -> Converted:
        """Return rows without data."""
        return Converted(pa.record_batch([pa.nulls(len(rows))], schema=self.schema), rows)


def _infer_type(name: str, sample: Sequence[dict[str, Any]]) -> Any:
    try:
        found = pa.array([row.get(name) for row in sample]).type
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as exc:
        raise StartupError(
            f"column {name!r} has values of different types, which Parquet cannot hold ({exc}); leave it out"
            " with --keep-columns, or write JSON Lines"
        ) from exc
    return replace_null_types(found)


def replace_null_types(kind: Any) -> Any:
    """Replace the types of columns without any value by text."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(replace_null_types(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct(list(_replace_fields(kind)))
    return kind


def _replace_fields(kind: Any) -> Iterator[Any]:
    for index in range(kind.num_fields):
        field = kind.field(index)
        yield pa.field(field.name, replace_null_types(field.type))
