"""Compare the speed of two commits: run the same benchmarks in both checkouts in turn, on one machine.

    python -m scripts.compare_commits 2f27a20                          # a worktree of it against this tree
    python -m scripts.compare_commits --base-dir ../base --turns 5     # a checkout that is there already
    python -m scripts.compare_commits 2f27a20 --quick --benchmark serve --benchmark "kinds --rounds 2"

Prints a table, and one JSON line last. Both sides run with the interpreter that runs this script.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "infinity_emb"
DEFAULT_BENCHMARKS = ("serve", "kinds", "dialects")
# Smaller workloads for --quick, by flags that a benchmark has in both commits.
QUICK_FLAGS = {"cache": ["--model", "fake"], "engines": ["--engines", "torch"]}

Figures = dict[str, list[float]]


class BenchmarkFailed(Exception):
    """Report a benchmark that ended with an error or printed no JSON line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """Name a module of `benchmarks/` and its arguments, the same on both sides."""

    name: str
    arguments: Sequence[str] = ()

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", f"benchmarks.{self.name}", *self.arguments]


@dataclass(slots=True)
class Comparison:
    """Collect the values of one figure on each side, from all turns."""

    base: list[float] = field(default_factory=list)
    head: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """Divide the head's median by the base's; None if one side lacks the figure."""
        if not self.base or not self.head or not statistics.median(self.base):
            return None
        return statistics.median(self.head) / statistics.median(self.base)

    @property
    def spread(self) -> float | None:
        """Return the range of the values over their median, the larger of both sides; None for single values.

        A ratio that differs from 1 by less is noise.
        """
        if min(len(self.base), len(self.head)) < 2:
            return None
        return max(_relative_range(self.base), _relative_range(self.head))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the turns and print the table and the JSON line; return the exit code."""
    options = _parse(arguments)
    benchmarks = parse_benchmarks(options.benchmark or DEFAULT_BENCHMARKS, options.rounds, options.quick)
    base = contextlib.nullcontext(options.base_dir) if options.base_dir else add_worktree(ROOT, options.base)
    with base as base_dir:
        checkouts = {"base": base_dir.resolve(), "head": options.head_dir.resolve()}
        for checkout in checkouts.values():
            check_import(checkout)
        commits = {side: describe_commit(checkout) for side, checkout in checkouts.items()}
        comparisons, num_failures = compare(checkouts, benchmarks, options.turns)
        is_changed = commits != {side: describe_commit(checkout) for side, checkout in checkouts.items()}
    print(f"base {commits['base']}, head {commits['head']}, {options.turns} turns\n")
    print("\n".join(format_table(comparisons)))
    print("\n" + json.dumps({**commits, "turns": options.turns, "figures": summarise(comparisons)}))
    if is_changed:
        sys.stderr.write("a checkout changed during the run: the figures do not belong to these commits\n")
    return 1 if num_failures or is_changed else 0


def parse_benchmarks(specs: Sequence[str], rounds: int, is_quick: bool) -> list[Benchmark]:
    """Split each `NAME [FLAG …]`; add `--rounds` if it is missing, and the smaller workload if `is_quick`."""
    benchmarks = []
    for spec in specs:
        name, *flags = shlex.split(spec)
        extra = QUICK_FLAGS.get(name, []) if is_quick and not flags else []
        extra = extra if "--rounds" in flags else [*extra, "--rounds", str(rounds)]
        benchmarks.append(Benchmark(name=name, arguments=[*flags, *extra]))
    return benchmarks


def compare(
    checkouts: Mapping[str, Path], benchmarks: Sequence[Benchmark], num_turns: int
) -> tuple[dict[str, Comparison], int]:
    """Run every benchmark in base, head, base, head, …

    Returns `benchmark.figure` → values, and the number of runs that failed: the others still count.
    """
    comparisons: defaultdict[str, Comparison] = defaultdict(Comparison)
    num_failures = 0
    for turn, benchmark, side in itertools.product(range(num_turns), benchmarks, checkouts):
        started_s = time.monotonic()
        try:
            figures = run_benchmark(checkouts[side], benchmark)
        except BenchmarkFailed as exc:
            sys.stderr.write(f"{exc}\n")
            num_failures += 1
            continue
        took_s = time.monotonic() - started_s
        sys.stderr.write(f"turn {turn + 1} of {num_turns}: {benchmark.name}, {side}: {took_s:.0f} s\n")
        for name, values in figures.items():
            getattr(comparisons[f"{benchmark.name}.{name}"], side).extend(values)
    return dict(comparisons), num_failures


def run_benchmark(checkout: Path, benchmark: Benchmark) -> Figures:
    """Run one benchmark in a checkout and return its figures. Raises BenchmarkFailed."""
    done = _run_in(checkout, benchmark.command)
    if done.returncode:
        raise BenchmarkFailed(
            f"{benchmark.name} in {checkout} ended with code {done.returncode}:\n{done.stderr}"
        )
    try:
        return read_figures(done.stdout)
    except ValueError as exc:
        raise BenchmarkFailed(f"{benchmark.name} in {checkout}: {exc}") from exc


def read_figures(output: str) -> Figures:
    """Read figure → values from the last line, JSON with `ratios` and perhaps `footprint`.

    Raises ValueError if it has another form.
    """
    last_line = output.rstrip().rpartition("\n")[2]
    try:
        result: dict[str, Any] = json.loads(last_line)
        figures = {name: [float(value) for value in row["rounds"]] for name, row in result["ratios"].items()}
    except (json.JSONDecodeError, KeyError, TypeError) as exc:
        raise ValueError(f"the last line is not the JSON of a benchmark: {last_line[:200]!r}") from exc
    for process, footprint in result.get("footprint", {}).items():
        figures |= {f"{process}.{name}": [float(value)] for name, value in footprint.items()}
    return figures


def check_import(checkout: Path) -> None:
    """Check that Python imports the package of this checkout. Raises RuntimeError.

    An installed copy would be measured on both sides otherwise.
    """
    done = _run_in(checkout, [sys.executable, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)"])
    if done.returncode or not Path(done.stdout.strip()).is_relative_to(checkout):
        raise RuntimeError(f"{checkout} does not import its own {PACKAGE}: {done.stdout}{done.stderr}")


def _run_in(checkout: Path, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


@contextlib.contextmanager
def add_worktree(root: Path, commit: str) -> Iterator[Path]:
    """Check a commit out into a temporary worktree, and remove it at the end."""
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder).resolve() / "base"
        _git(root, "worktree", "add", "--detach", str(checkout), commit)
        try:
            yield checkout
        finally:
            _git(root, "worktree", "remove", "--force", str(checkout))


def describe_commit(checkout: Path) -> str:
    """Return the commit of a checkout, with `-dirty` where files differ from it."""
    return _git(checkout, "describe", "--always", "--dirty")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def format_table(comparisons: Mapping[str, Comparison]) -> Iterator[str]:
    """Yield the lines of the table."""
    width = max(map(len, comparisons), default=0)
    columns = f"{'base median [min–max]':>26} {'head median [min–max]':>26} {'head/base':>10} {'spread':>7}"
    yield f"{'figure':<{width}} {columns}"
    for name, each in comparisons.items():
        ratio = "-" if each.ratio is None else f"{each.ratio:.3f}"
        sides = f"{_format_side(each.base):>26} {_format_side(each.head):>26}"
        spread = "-" if each.spread is None else f"{each.spread:.1%}"
        yield f"{name:<{width}} {sides} {ratio:>10} {spread:>7}"


def _format_side(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):.3f} [{min(values):.3f}–{max(values):.3f}]"


def summarise(comparisons: Mapping[str, Comparison]) -> dict[str, object]:
    """Return the same for programs."""
    return {
        name: {"base": each.base, "head": each.head, "ratio": each.ratio, "spread": each.spread}
        for name, each in comparisons.items()
    }


def _relative_range(values: Sequence[float]) -> float:
    median = statistics.median(values)
    return (max(values) - min(values)) / abs(median) if median else 0.0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.compare_commits", description="Compare the speed of two commits."
    )
    base = parser.add_mutually_exclusive_group(required=True)
    base.add_argument("base", nargs="?", help="commit to compare with, checked out into a temporary worktree")
    base.add_argument("--base-dir", type=Path, help="checkout to compare with, instead of a commit")
    parser.add_argument("--head-dir", type=Path, default=ROOT, help="checkout to judge (default: this one)")
    parser.add_argument(
        "--benchmark",
        action="append",
        metavar='"NAME [FLAG …]"',
        help=f"module of benchmarks/ and its flags; repeatable (default: {', '.join(DEFAULT_BENCHMARKS)})",
    )
    parser.add_argument("--turns", type=int, help="runs of each benchmark on each side (default 3)")
    parser.add_argument("--rounds", type=int, help="rounds in each run, unless its flags say so (default 3)")
    parser.add_argument("--quick", action="store_true", help="one turn of one round, smaller workloads")
    options = parser.parse_args(arguments)
    options.turns = options.turns or (1 if options.quick else 3)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


if __name__ == "__main__":
    sys.exit(main())
