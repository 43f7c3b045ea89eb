"""Describe a command that has its own arguments, and print its results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import NamedTuple

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


class Tool(NamedTuple):
    """A command of the command line.

    run: returns the exit code.
    usage: replaces argparse's own, which lists every option.
    """

    summary: str
    details: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    usage: str | None = None


def print_table(rows: Sequence[Sequence[str]], *, right_aligned: Sequence[int] = ()) -> None:
    """Print rows of cells in columns; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    for row in rows:
        cells = [
            cell.rjust(width) if number in right_aligned else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        print_line("  ".join(cells).rstrip())


def print_line(line: str = "") -> None:
    """Print a line to the standard output."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def format_bytes(number: float) -> str:
    """Return a size in decimal units, with three digits or less."""
    power = 0
    while number >= 999.5 and power < len(_UNITS) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.3g} {_UNITS[power]}"
