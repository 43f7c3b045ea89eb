"""Run rounds in which all subjects take turns, and report the results."""

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
    """Hold one line of the table: a ratio that each round measures, and its goal."""

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
    """Declare a benchmark: its peers, and the figures of a round."""

    @property
    def rows(self) -> Mapping[str, Row]: ...

    def measure(self) -> Mapping[str, float]:
        """Run one round and return the value of each row."""

    def close(self) -> object:
        """Stop the peers."""


def report(bench: Bench, num_rounds: int, *, about: str = "") -> None:
    """Run the rounds, close the bench in any case, and print the table and the JSON line.

    about: the workload, printed beside the machine.
    """
    try:
        run_rounds(bench.rows, bench.measure, num_rounds)
    finally:
        bench.close()
    print(f"\n{describe_machine()}{about and '; '}{about}\n")
    print_rows(bench.rows)
    print("\n" + json.dumps({"machine": describe_machine(), "ratios": summarize_rows(bench.rows)}))


def run_rounds(
    rows: Mapping[str, Row],
    measure: Callable[[], Mapping[str, float]],
    num_rounds: int,
    *,
    warms_up: bool = True,
) -> None:
    """Run one round as a warm-up, then `num_rounds` that count. measure: returns the value of each row."""
    if warms_up:
        measure()
    for _ in range(num_rounds):
        for name, value in measure().items():
            rows[name].values.append(value)


def print_rows(rows: Mapping[str, Row]) -> None:
    """Print the table."""
    print(f"{'':<62} {'median':>8}  {'spread':<16} goal")
    for row in rows.values():
        print(row)


def summarize_rows(rows: Mapping[str, Row]) -> dict[str, object]:
    """Return the rows as they are printed in the JSON line."""
    return {name: {"median": row.median, "rounds": row.values} for name, row in rows.items()}


def describe_machine() -> str:
    """Name the processor and the number of its cores."""
    try:
        with open("/proc/cpuinfo") as lines:
            found = re.search(r"model name\s*:\s*(.*)", lines.read())
    except OSError:
        found = None
    return f"{found.group(1) if found else platform.machine()}, {os.cpu_count()} cores"
