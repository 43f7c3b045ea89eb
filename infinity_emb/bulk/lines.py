"""Read the rows of text files: JSON Lines, CSV and plain text.

A row that cannot be parsed is rejected alone; reading continues with the next row.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from infinity_emb.bulk.columns import Columns, has_surrogates
from infinity_emb.bulk.json_columns import JsonColumns, JsonRow
from infinity_emb.bulk.line_stream import MAX_LINE_BYTES, Line, iterate_lines
from infinity_emb.bulk.rows import MAX_CONTENT_CHARS, Block, Rejected, RowInput
from infinity_emb.bulk.sources import SourceFile
from infinity_emb.errors import StartupError

ROWS_PER_BLOCK = 1024
_MAX_BLOCK_BYTES = 4 * 2**20
_TOO_LONG = Rejected(f"the line has more than {MAX_LINE_BYTES} bytes; split it")


class Record(NamedTuple):
    """A row of a CSV file, or the reason why it cannot be parsed."""

    line: int
    fields: Sequence[str] | Rejected


class JsonLinesReader:
    """Read one object per line, skipping blank lines."""

    def __init__(self, file: SourceFile, columns: Columns, kept: JsonColumns) -> None:
        self._name = file.name
        self._columns = columns
        self._kept = kept
        lines = iterate_lines(file.open_stream())
        self._lines = (line for line in lines if line.text is None or line.text.strip())

    def skip(self, num_rows: int) -> int:
        """Skip rows; return how many were skipped, fewer at the end of the file."""
        return _skip(self._lines, num_rows)

    def read_objects(self, max_rows: int) -> list[dict[str, Any]]:
        """Return the first rows that can be parsed."""
        rows = (_parse_object(line.text) for line in itertools.islice(self._lines, max_rows))
        return [row for row in rows if not isinstance(row, Rejected)]

    def __iter__(self) -> Iterator[Block]:
        for lines in _take_blocks(self._lines):
            rows = [_parse_object(line.text) for line in lines]
            inputs = [self._make_input(row, line) for row, line in zip(rows, lines, strict=True)]
            checked = [
                value if isinstance(value, Rejected) else row for value, row in zip(inputs, rows, strict=True)
            ]
            kept = self._kept.convert(checked, [line.text or b"" for line in lines])
            inputs = [
                row if isinstance(row, Rejected) else value
                for value, row in zip(inputs, kept.rows, strict=True)
            ]
            yield Block(kept.batch, inputs, self._name, [line.number for line in lines])

    def _make_input(self, row: JsonRow, line: Line) -> RowInput | Rejected:
        if isinstance(row, Rejected):
            return row
        return self._columns.make_input([row.get(name) for name in self._columns.read], _show(line.text))


class TextReader:
    """Read one text per line; a blank line is an empty text."""

    def __init__(self, file: SourceFile, columns: Columns, make_batch: Callable[..., Any]) -> None:
        self._name = file.name
        self._columns = columns
        self._make_batch = make_batch
        self._is_kept = bool(columns.select_kept([columns.text]))
        self._lines = iterate_lines(file.open_stream())

    def skip(self, num_rows: int) -> int:
        """Skip rows; return how many were skipped, fewer at the end of the file."""
        return _skip(self._lines, num_rows)

    def __iter__(self) -> Iterator[Block]:
        for lines in _take_blocks(self._lines):
            inputs = [_TOO_LONG if line.text is None else self._make_input(line.text) for line in lines]
            kept = []
            if self._is_kept:
                pairs = zip(inputs, lines, strict=True)
                kept = [
                    [None if isinstance(value, Rejected) else _decode(line.text) for value, line in pairs]
                ]
            yield Block(
                self._make_batch(kept, len(inputs)), inputs, self._name, [line.number for line in lines]
            )

    def _make_input(self, text: bytes) -> RowInput | Rejected:
        return self._columns.make_input([_decode(text)], _show(text))


class CsvReader:
    """Read the records of a CSV file with a header; every column is text, as in the file."""

    def __init__(
        self, file: SourceFile, columns: Columns, make_batch: Callable[..., Any], *, delimiter: str
    ) -> None:
        self._name = file.name
        self._columns = columns
        self._make_batch = make_batch
        self._records = iterate_records(file, delimiter)
        self.header = read_header(self._records, file.name)
        self._read = [self.header.index(name) for name in columns.read if name in self.header]
        self._kept = [self.header.index(name) for name in columns.select_kept(self.header)]

    def skip(self, num_rows: int) -> int:
        """Skip rows; return how many were skipped, fewer at the end of the file."""
        return _skip(self._records, num_rows)

    def __iter__(self) -> Iterator[Block]:
        for records in _take_blocks(self._records):
            rows = [self._check(record.fields) for record in records]
            inputs = [row if isinstance(row, Rejected) else self._make_input(row) for row in rows]
            is_good = [not isinstance(value, Rejected) for value in inputs]
            pairs = list(zip(rows, is_good, strict=True))
            kept = [[row[index] if is_kept else None for row, is_kept in pairs] for index in self._kept]
            yield Block(
                self._make_batch(kept, len(rows)), inputs, self._name, [record.line for record in records]
            )

    def _check(self, fields: Sequence[str] | Rejected) -> Sequence[str] | Rejected:
        if isinstance(fields, Rejected) or len(fields) == len(self.header):
            return fields
        reason = f"the row has {len(fields)} fields, the header has {len(self.header)}"
        return Rejected(reason, ",".join(fields)[:MAX_CONTENT_CHARS])

    def _make_input(self, row: Sequence[str]) -> RowInput | Rejected:
        made = self._columns.make_input([row[index] for index in self._read], ",".join(row))
        if not isinstance(made, Rejected):
            for index in self._kept:
                if has_surrogates(row[index]):
                    return Rejected(f"column {self.header[index]!r} is not valid UTF-8", ",".join(row))
        return made


def iterate_records(file: SourceFile, delimiter: str) -> Iterator[Record]:
    """Yield the records of a CSV file, its header first, skipping blank lines. Raises StartupError."""
    csv.field_size_limit(MAX_LINE_BYTES)
    records = csv.reader(_decode_lines(file), delimiter=delimiter, strict=True)
    while True:
        line = records.line_num + 1
        try:
            fields = next(records)
        except StopIteration:
            return
        except csv.Error as exc:
            yield Record(line, Rejected(f"the row is not valid CSV: {exc}"))
        else:
            if fields:
                yield Record(line, fields)


def read_header(records: Iterator[Record], name: str) -> Sequence[str]:
    """Return the first record. Raises StartupError if it is missing or has a name twice."""
    header = next(records, Record(1, Rejected("the file is empty"))).fields
    if isinstance(header, Rejected):
        raise StartupError(f"{name} has no header: {header.reason}")
    if len(set(header)) < len(header):
        raise StartupError(f"the header of {name} has a name twice: {', '.join(map(repr, header))}")
    return header


def _decode_lines(file: SourceFile) -> Iterator[str]:
    for line in iterate_lines(file.open_stream()):
        if line.text is None:
            raise StartupError(f"line {line.number} of {file.name}: {_TOO_LONG.reason}")
        yield _decode(line.text) + "\n"


def _decode(text: bytes | None) -> str:
    """Decode UTF-8; invalid bytes become lone surrogates, which are rejected later."""
    return (text or b"").decode("utf-8", "surrogateescape")


def _parse_object(text: bytes | None) -> dict[str, Any] | Rejected:
    if text is None:
        return _TOO_LONG
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        return Rejected(f"the line is not valid JSON: {exc}", _show(text))
    if not isinstance(row, dict):
        return Rejected(f"the line is a JSON {type(row).__name__}, not an object", _show(text))
    return row


def _show(text: bytes | None) -> str:
    return (text or b"")[: 4 * MAX_CONTENT_CHARS].decode("utf-8", "replace")[:MAX_CONTENT_CHARS]


def _skip(items: Iterator[Any], number: int) -> int:
    for count in range(number):
        if next(items, None) is None:
            return count
    return number


def _take_blocks(items: Iterator[Any]) -> Iterator[list[Any]]:
    """Yield lists of consecutive items, small enough that a few of them fit into memory."""
    block: list[Any] = []
    num_bytes = 0
    for item in items:
        block.append(item)
        num_bytes += len(item[1] or ())
        if len(block) >= ROWS_PER_BLOCK or num_bytes >= _MAX_BLOCK_BYTES:
            yield block
            block, num_bytes = [], 0
    if block:
        yield block
