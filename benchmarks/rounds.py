"""Rounds in which everything that is compared takes a turn, and the report of what came out.

Knows nothing of what is measured.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


@dataclass(slots=True)
class Row:
    """One line of the table: a ratio measured once a round, and the goal it has."""

    name: str
    goal: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return float(np.median(self.values))

    def __str__(self) -> str:
        spread = f"{min(self.values):.2f} … {max(self.values):.2f}"
        return f"{self.name:<62} {self.median:>8.2f}  {spread:<16} {self.goal}"


class Bench(Protocol):
    """Peers, and what is measured of them."""

    @property
    def rows(self) -> Mapping[str, Row]: ...

    def measure(self) -> Mapping[str, float]:
        """One round: the value of each row."""

    def close(self) -> object:
        """End the peers."""


def report(bench: Bench, num_rounds: int, *, about: str = "") -> None:
    """Run the rounds, close the bench in any case, print the table, and the same as JSON.

    about: what was measured, beside the machine.
    """
    try:
        run_rounds(bench.rows, bench.measure, num_rounds)
    finally:
        bench.close()
    print(f"\n{machine()}{about and '; '}{about}\n")
    print_rows(bench.rows)
    print("\n" + json.dumps({"machine": machine(), "ratios": ratios_of(bench.rows)}))


def run_rounds(rows: Mapping[str, Row], measure: Callable[[], Mapping[str, float]], num_rounds: int) -> None:
    """One round that does not count, then those that do. measure: a round; the value of each row."""
    for number in range(num_rounds + 1):
        values = measure()
        if number:
            for name, value in values.items():
                rows[name].values.append(value)


def print_rows(rows: Mapping[str, Row]) -> None:
    """The table for people."""
    print(f"{'':<62} {'median':>8}  {'spread':<16} goal")
    for row in rows.values():
        print(row)


def ratios_of(rows: Mapping[str, Row]) -> dict[str, object]:
    """The same for programs."""
    return {name: {"median": row.median, "rounds": row.values} for name, row in rows.items()}


def machine() -> str:
    """The processor and its cores."""
    try:
        with open("/proc/cpuinfo") as lines:
            found = re.search(r"model name\s*:\s*(.*)", lines.read())
    except OSError:
        found = None
    return f"{found.group(1) if found else platform.machine()}, {os.cpu_count()} cores"
