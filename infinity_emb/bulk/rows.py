"""Define the rows of a job, on their way from a file to a shard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from infinity_emb.items import Pair

MAX_CONTENT_CHARS = 1000


class Rejected(NamedTuple):
    """The reason why a row has no result, and the beginning of the row."""

    reason: str
    content: str = ""


# A text, or a query and a document.
RowInput: TypeAlias = "str | Pair"


class Block(NamedTuple):
    """Consecutive rows of one file.

    kept: pyarrow.RecordBatch of the copied columns; the rows of rejected inputs may hold anything.
    lines: the number of each row in its file, from 1; in text files, the number of its line.
    """

    kept: Any
    inputs: Sequence[RowInput | Rejected]
    file: str
    lines: Sequence[int]

    def slice(self, start: int, stop: int) -> Block:
        """Return the rows [start, stop)."""
        return Block(
            self.kept.slice(start, stop - start), self.inputs[start:stop], self.file, self.lines[start:stop]
        )


class BadRow(NamedTuple):
    """A row without a result.

    row: its number in the whole input, from 0.
    """

    row: int
    file: str
    line: int
    reason: str
    content: str


class Window(NamedTuple):
    """The rows [start, stop) of the whole input, which are sorted, computed and committed together."""

    start: int
    blocks: Sequence[Block]

    @property
    def stop(self) -> int:
        """Return the number of the row after the last one."""
        return self.start + sum(len(block.inputs) for block in self.blocks)

    def list_inputs(self) -> list[RowInput | Rejected]:
        """Return the inputs in order."""
        return [value for block in self.blocks for value in block.inputs]

    def list_bad_rows(self, results: Sequence[Any]) -> list[BadRow]:
        """Return the rows whose result is `Rejected`."""
        bad, index = [], 0
        for block in self.blocks:
            for value, line in zip(block.inputs, block.lines, strict=True):
                if isinstance(result := results[index], Rejected):
                    bad.append(BadRow(self.start + index, block.file, line, result.reason, show_input(value)))
                index += 1
        return bad


def show_input(value: RowInput | Rejected) -> str:
    """Return the beginning of a row."""
    if isinstance(value, Rejected):
        return value.content[:MAX_CONTENT_CHARS]
    return " ".join([value] if isinstance(value, str) else value)[:MAX_CONTENT_CHARS]


def count_chars(value: RowInput | Rejected) -> int:
    """Return the number of characters of an input, which is about proportional to its tokens."""
    return len(value) if isinstance(value, str) else sum(map(len, value))
