"""Choose the input columns that are computed and copied, and read texts from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infinity_emb.bulk.rows import Rejected, RowInput
from infinity_emb.config.bulk_options import BulkOptions
from infinity_emb.config.parsing import did_you_mean
from infinity_emb.errors import StartupError
from infinity_emb.items import Pair

KEEP_NONE = ("none",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns that a job reads.

    query_column: None if rows have no own query; query: then the query of all rows, or None.
    kept: None for all.
    result: the column that is added.
    """

    text: str
    query_column: str | None
    query: str | None
    kept: Sequence[str] | None
    result: str

    @classmethod
    def from_options(cls, task: str, options: BulkOptions, default_result: str) -> Columns:
        """Read the options of a job."""
        has_query_column = task == "rerank" and not options.query
        kept = options.keep_columns or None
        return cls(
            text=options.text_column,
            query_column=options.query_column if has_query_column else None,
            query=options.query if task == "rerank" and options.query else None,
            kept=() if kept == KEEP_NONE else kept,
            result=options.output_column or default_result,
        )

    @property
    def read(self) -> list[str]:
        """The columns that hold texts."""
        return [self.text] if self.query_column is None else [self.query_column, self.text]

    def check(self, names: Sequence[str], file: str) -> None:
        """Raise StartupError if a column is missing or the name of the result is taken."""
        for name in [*self.read, *(self.kept or ())]:
            if name not in names:
                option = "--query-column" if name == self.query_column else "--text-column"
                option = option if name in self.read else "--keep-columns"
                raise StartupError(
                    f"{file} has no column {name!r}; it has {', '.join(map(repr, names))}; set"
                    f" {option}{did_you_mean(name, names)}"
                )
        if self.result in self.select_kept(names):
            raise StartupError(
                f"{file} has a column {self.result!r} already; choose another --output-column, or leave it"
                " out with --keep-columns"
            )

    def select_kept(self, names: Sequence[str]) -> list[str]:
        """Return the names of copied columns, in the order of the input or as given."""
        return list(names) if self.kept is None else list(self.kept)

    def make_input(self, values: Sequence[Any], content: str = "") -> RowInput | Rejected:
        """Make an input from the values of the columns `read`, or return what is wrong with them."""
        for name, value in zip(self.read, values, strict=True):
            if not isinstance(value, str):
                what = "missing or null" if value is None else f"{type(value).__name__}, not text"
                return Rejected(f"column {name!r} is {what}", content)
            if has_surrogates(value):
                return Rejected(f"column {name!r} is not valid UTF-8", content)
        if self.query is not None:
            return Pair(self.query, values[0])
        return values[0] if self.query_column is None else Pair(*values)


def has_surrogates(text: str) -> bool:
    """Return true for a text with surrogates, which UTF-8 cannot encode."""
    return not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text)
