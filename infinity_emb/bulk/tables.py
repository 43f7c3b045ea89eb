"""Read the rows of Parquet and Arrow files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infinity_emb.bulk.columns import Columns
from infinity_emb.bulk.rows import Block, Rejected, RowInput
from infinity_emb.bulk.sources import SourceFile, split_suffix
from infinity_emb.errors import StartupError

ROWS_PER_BATCH = 4096
_MAGIC = b"ARROW1"


class TableReader:
    """Read the record batches of one file.

    make_batch: selects the kept columns of a batch.
    """

    def __init__(
        self, file: SourceFile, columns: Columns, make_batch: Callable[[Any], Any], *, is_parquet: bool
    ) -> None:
        self._file = file
        self._columns = columns
        self._make_batch = make_batch
        self._num_skipped = 0
        self._table = _open_table(file, is_parquet=is_parquet)
        self.schema = self._table.schema
        check_text_columns(self.schema, columns, file.name)

    def skip(self, num_rows: int) -> int:
        """Skip rows; return how many were skipped, fewer at the end of the file."""
        self._num_skipped = min(num_rows, self._table.count_rows(num_rows))
        return self._num_skipped

    def __iter__(self) -> Iterator[Block]:
        names = list(dict.fromkeys([*self._columns.read, *self._columns.select_kept(self.schema.names)]))
        line = 1 + self._num_skipped
        for batch in self._table.iterate(names, self._num_skipped):
            inputs = read_inputs(batch, self._columns)
            lines = range(line, line + len(inputs))
            yield Block(self._make_batch(batch), inputs, self._file.name, lines)
            line += len(inputs)


class _ParquetTable:
    def __init__(self, file: SourceFile) -> None:
        self._file = pq.ParquetFile(file.open_random_access(), buffer_size=2**20)
        self.schema = self._file.schema_arrow

    def count_rows(self, limit: int) -> int:
        del limit
        return int(self._file.metadata.num_rows)

    def iterate(self, names: Sequence[str], num_skipped: int) -> Iterator[Any]:
        metadata, first = self._file.metadata, 0
        while first < metadata.num_row_groups and num_skipped >= metadata.row_group(first).num_rows:
            num_skipped -= metadata.row_group(first).num_rows
            first += 1
        groups = range(first, metadata.num_row_groups)
        batches = self._file.iter_batches(ROWS_PER_BATCH, row_groups=groups, columns=list(names))
        yield from _drop_rows(batches, num_skipped)


class _ArrowTable:
    """The file format, which has an index, or the stream format, which has none."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._reader = _open_arrow(file)
        self._is_stream = not hasattr(self._reader, "num_record_batches")
        self.schema = self._reader.schema

    def count_rows(self, limit: int) -> int:
        """Count rows up to about the limit, in another pass over the file."""
        num_rows = 0
        for batch in self._iterate_batches(_open_arrow(self._file)) if limit else ():
            num_rows += batch.num_rows
            if num_rows >= limit:
                break
        return num_rows

    def iterate(self, names: Sequence[str], num_skipped: int) -> Iterator[Any]:
        for batch in _drop_rows(self._iterate_batches(self._reader), num_skipped):
            for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                yield batch.slice(start, ROWS_PER_BATCH).select(list(names))

    def _iterate_batches(self, reader: Any) -> Iterator[Any]:
        if self._is_stream:
            yield from reader
        else:
            yield from map(reader.get_batch, range(reader.num_record_batches))


def _open_table(file: SourceFile, *, is_parquet: bool) -> _ParquetTable | _ArrowTable:
    try:
        return _ParquetTable(file) if is_parquet else _ArrowTable(file)
    except (pa.ArrowException, OSError) as exc:
        raise StartupError(
            f"{file.name} is not a {'Parquet' if is_parquet else 'Arrow'} file: {exc}"
        ) from exc


def _open_arrow(file: SourceFile) -> Any:
    if file.filesystem is not None and split_suffix(file.path)[1] is None:
        opened = file.open_random_access()
        is_file = opened.read(len(_MAGIC)) == _MAGIC
        opened.seek(0)
        if is_file:
            return pa.ipc.open_file(opened)
    return pa.ipc.open_stream(file.open_stream())


def _drop_rows(batches: Iterator[Any], number: int) -> Iterator[Any]:
    """Skip the first rows of batches."""
    for batch in batches:
        if number >= batch.num_rows:
            number -= batch.num_rows
        else:
            yield batch.slice(number)
            number = 0


def check_text_columns(schema: Any, columns: Columns, name: str) -> None:
    """Raise StartupError if a text column is missing or does not hold texts."""
    columns.check(schema.names, name)
    for column in columns.read:
        kind = schema.field(column).type
        value_kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
        if not any(check(value_kind) for check in checks):
            raise StartupError(f"column {column!r} of {name} is {kind}, not text; choose another")


def read_inputs(batch: Any, columns: Columns) -> list[RowInput | Rejected]:
    """Return the input of each row of a record batch."""
    texts = [_list_texts(batch.column(name)) for name in columns.read]
    return [columns.make_input(values) for values in zip(*texts, strict=True)]


def _list_texts(column: Any) -> list[str | None]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        texts: list[str | None] = column.to_pylist()
    except UnicodeDecodeError:  # Arrow files may hold anything
        values = column.cast(pa.large_binary()).to_pylist()
        texts = [None if value is None else value.decode("utf-8", "surrogateescape") for value in values]
    return texts
