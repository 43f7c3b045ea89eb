"""Read the files of a job as windows of rows, from any row on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import pyarrow as pa

from infinity_emb.bulk.columns import Columns
from infinity_emb.bulk.json_columns import SAMPLE_ROWS, JsonColumns, NoColumns, RawColumns, TypedColumns
from infinity_emb.bulk.lines import CsvReader, JsonLinesReader, TextReader
from infinity_emb.bulk.rows import Block, Rejected, Window, count_chars
from infinity_emb.bulk.sources import STDIN, SourceFile, split_suffix
from infinity_emb.bulk.tables import TableReader
from infinity_emb.errors import StartupError

# Three windows are in memory: one that is read, one that is computed and one that is written.
MAX_WINDOW_ROWS = 8192
MAX_WINDOW_CHARS = 16 * 2**20
_SAMPLE_BYTES = 2**20


class Reader(Protocol):
    """Reads one file."""

    def skip(self, num_rows: int) -> int:
        """Skip rows; return how many were skipped, fewer at the end of the file."""

    def __iter__(self) -> Iterator[Block]:
        """Yield the rest of the rows."""


class RowSource:
    """The rows of all files, one after the other.

    schema: pyarrow.Schema of the columns that are kept.
    Raises StartupError for a file that cannot be read or lacks a column.
    """

    def __init__(
        self, files: Sequence[SourceFile], *, input_format: str, output_format: str, columns: Columns
    ) -> None:
        self._files = files
        self._format = input_format
        self._columns = columns
        self._is_json = output_format == "jsonl"
        self._keeps_rows = output_format != "npy" and columns.kept != ()
        self._json_columns: JsonColumns = NoColumns()
        if input_format == "jsonl":
            self._json_columns = self._choose_json_columns()
            self.schema = self._json_columns.schema
        else:
            self.schema = self._check_schemas()

    def count_rows(self) -> int | None:
        """Estimate the number of rows; return None if that needs reading all of them."""
        if self._format in ("parquet", "arrow"):
            return (
                None if self._format == "arrow" else sum(self._open(file).skip(2**62) for file in self._files)
            )
        is_compressed = any(split_suffix(file.path)[1] for file in self._files)
        sizes = [file.size_bytes for file in self._files]
        if is_compressed or None in sizes:
            return None
        sample: bytes = self._files[0].open_stream().read(_SAMPLE_BYTES)
        return round(sum(filter(None, sizes)) * max(1, sample.count(b"\n")) / max(1, len(sample)))

    def iterate_windows(self, start: int, rows_per_shard: int | None) -> Iterator[Window]:
        """Yield the rows from `start` on in windows that do not cross the end of a shard."""
        blocks: list[Block] = []
        window_start, num_rows, num_chars = start, 0, 0
        for block in self._iterate_blocks(start):
            for part in _split(block, window_start + num_rows, rows_per_shard):
                blocks.append(part)
                num_rows += len(part.inputs)
                num_chars += sum(
                    count_chars(value) for value in part.inputs if not isinstance(value, Rejected)
                )
                stop = window_start + num_rows
                is_end_of_shard = rows_per_shard is not None and stop % rows_per_shard == 0
                if num_rows >= MAX_WINDOW_ROWS or num_chars >= MAX_WINDOW_CHARS or is_end_of_shard:
                    yield Window(window_start, blocks)
                    blocks, window_start, num_rows, num_chars = [], stop, 0, 0
        if blocks:
            yield Window(window_start, blocks)

    def _iterate_blocks(self, num_skipped: int) -> Iterator[Block]:
        for file in self._files:
            try:
                reader = self._open(file)
                num_skipped -= reader.skip(num_skipped)
                if not num_skipped:
                    yield from reader
            except (OSError, pa.ArrowException) as exc:
                raise StartupError(f"{file.name} cannot be read: {exc}") from exc

    def _open(self, file: SourceFile) -> Reader:
        if self._format == "jsonl":
            return JsonLinesReader(file, self._columns, self._json_columns)
        if self._format == "text":
            return TextReader(file, self._columns, self._make_text_batch)
        if self._format in ("csv", "tsv"):
            delimiter = "," if self._format == "csv" else "\t"
            return CsvReader(file, self._columns, self._make_text_batch, delimiter=delimiter)
        return TableReader(file, self._columns, self._select, is_parquet=self._format == "parquet")

    def _choose_json_columns(self) -> JsonColumns:
        """Infer the types from the first rows. Raises StartupError if they cannot be read again."""
        if not self._keeps_rows:
            return NoColumns()
        if self._is_json:
            return RawColumns(self._columns)
        if self._files[0].name == STDIN:
            raise StartupError(
                "JSON Lines from standard input cannot become Parquet, whose types come from the first rows;"
                " write JSON Lines or .npy, or the input to a file"
            )
        return TypedColumns(self._columns, _read_sample(self._files, self._columns))

    def _check_schemas(self) -> Any:
        """Return the schema of the kept columns, and check that every file has it."""
        if self._format == "text":
            names = [self._columns.text]
            self._columns.check(names, self._files[0].name)
            schema = _text_schema(self._columns.select_kept(names))
        elif self._files[0].name == STDIN:
            raise StartupError(
                f"standard input cannot be {self._format}, whose columns are checked before the job starts;"
                " use jsonl or text, or write it to a file"
            )
        else:
            schema = self._check_each_schema()
        return schema if self._keeps_rows else NoColumns.schema

    def _check_each_schema(self) -> Any:
        schema = None
        self.schema = pa.schema([])
        for file in self._files:
            reader: Any = self._open(file)
            found = _text_schema(reader.header) if isinstance(reader, CsvReader) else reader.schema
            self._columns.check(found.names, file.name)
            kept = pa.schema([found.field(name) for name in self._columns.select_kept(found.names)])
            schema = kept if schema is None else schema
            if not schema.equals(kept):
                raise StartupError(
                    f"{file.name} has other columns than {self._files[0].name}: {_describe(kept)} in place of"
                    f" {_describe(schema)}; name those to copy with --keep-columns, or run a job for each"
                )
        return schema

    def _select(self, batch: Any) -> Any:
        if not self._keeps_rows:
            return pa.record_batch([pa.nulls(batch.num_rows)], schema=self.schema)
        return pa.record_batch(batch.select(self.schema.names).columns, schema=self.schema)

    def _make_text_batch(self, columns: Sequence[Sequence[str | None]], num_rows: int) -> Any:
        if not self._keeps_rows:
            return pa.record_batch([pa.nulls(num_rows)], schema=NoColumns.schema)
        return pa.record_batch([pa.array(column, pa.string()) for column in columns], schema=self.schema)


def _text_schema(names: Sequence[str]) -> Any:
    return pa.schema([(name, pa.string()) for name in names])


def _describe(schema: Any) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema) or "none"


def _split(block: Block, start: int, rows_per_shard: int | None) -> Iterator[Block]:
    """Split a block at the ends of windows and of shards."""
    offset = 0
    while offset < len(block.inputs):
        size = MAX_WINDOW_ROWS
        if rows_per_shard is not None:
            size = min(size, rows_per_shard - (start + offset) % rows_per_shard)
        yield block.slice(offset, min(offset + size, len(block.inputs)))
        offset += size


def _read_sample(files: Sequence[SourceFile], columns: Columns) -> list[dict[str, Any]]:
    """Return the first rows that are objects. Raises StartupError if none has the text columns."""
    rows: list[dict[str, Any]] = []
    everything = NoColumns()
    for file in files:
        reader = JsonLinesReader(file, columns, everything)
        rows += reader.read_objects(SAMPLE_ROWS - len(rows))
        if len(rows) >= SAMPLE_ROWS:
            break
    names = list(dict.fromkeys(name for row in rows for name in row))
    if rows:
        columns.check(names, files[0].name)
    return rows
