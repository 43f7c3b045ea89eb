"""Draw a snapshot with rich: figures with sparklines, and a table of models."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from infinity_emb.cli.tool import format_bytes
from infinity_emb.cli.top.figures import Figures, ModelFigures
from infinity_emb.cli.top.reading import Snapshot

_BLOCKS = "▁▂▃▄▅▆▇█"
NUM_POINTS = 40


class Row(NamedTuple):
    """One line of figures."""

    label: str
    read: Callable[[Figures], float | None]
    format: Callable[[float], str]


def format_number(value: float) -> str:
    """Return a number with three significant digits, and commas between thousands."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def format_seconds(value: float) -> str:
    """Return a duration in seconds, or in milliseconds if it is below one second."""
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def format_share(value: float) -> str:
    """Return a percentage."""
    return f"{100 * value:.0f} %"


ROWS = (
    Row("requests/s", lambda each: each.requests_per_s, format_number),
    Row("errors/s", lambda each: each.errors_per_s, format_number),
    Row("inputs/s", lambda each: each.inputs_per_s, format_number),
    Row("tokens/s", lambda each: each.tokens_per_s, format_number),
    Row("latency p50", lambda each: each.p50_s, format_seconds),
    Row("latency p99", lambda each: each.p99_s, format_seconds),
    Row("inputs/batch", lambda each: each.batch_items, format_number),
    Row("batch fill", lambda each: each.batch_fill, format_share),
    Row("computing", lambda each: each.busy, format_share),
    Row("cache hits", lambda each: each.cache_hit_rate, format_share),
)


class View:
    """Draw snapshots, one after the other."""

    def __init__(self) -> None:
        self._history: dict[str, deque[float]] = {row.label: deque(maxlen=NUM_POINTS) for row in ROWS}

    def draw(self, snapshot: Snapshot, *, problem: str = "") -> RenderableType:
        """Return what to print; problem: why the last scrape failed."""
        for row in ROWS:
            self._history[row.label].append(row.read(snapshot.now) or 0.0)
        parts = (_draw_head(snapshot), self._draw_figures(snapshot), "", _draw_models(snapshot.models))
        return Group(*parts, *([Text(problem, style="bold red")] if problem else []))

    def _draw_figures(self, snapshot: Snapshot) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("")
        table.add_column(f"last {snapshot.now.seconds:.3g} s", justify="right", style="bold")
        table.add_column("since start", justify="right")
        has_history = len(self._history[ROWS[0].label]) > 1
        if has_history:
            table.add_column("")
        for row in ROWS:
            cells = [row.label, *(_format(row, each) for each in (snapshot.now, snapshot.since_start))]
            sparkline = [draw_sparkline(self._history[row.label])] if has_history else []
            table.add_row(*cells, *sparkline)
        return table


def draw_sparkline(values: Iterable[float]) -> str:
    """Draw values as blocks whose height is relative to the largest."""
    listed = list(values)
    largest = max(listed, default=0.0)
    if largest <= 0:
        return _BLOCKS[0] * len(listed)
    return "".join(_BLOCKS[round((len(_BLOCKS) - 1) * max(0.0, value) / largest)] for value in listed)


def _draw_head(snapshot: Snapshot) -> Text:
    memory = format_bytes(snapshot.memory_bytes) if snapshot.memory_bytes else "unknown"
    return Text(
        f"{snapshot.url}   {snapshot.queue_items} inputs queued, {snapshot.pending_requests} requests"
        f" pending, {memory} of memory\n"
    )


def _draw_models(models: list[ModelFigures]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("model", overflow="fold")
    table.add_column("kind")
    table.add_column("computed by")
    for heading in ("inputs/s", "tokens/s", "queue", "cached"):
        table.add_column(heading, justify="right", no_wrap=True)
    for model in models:
        table.add_row(
            model.name if model.is_loaded else f"{model.name} (not loaded)",
            *(model.kind, f"{model.engine}, {model.device}, {model.dtype}"),
            *(_or_dash(value, format_number) for value in (model.inputs_per_s, model.tokens_per_s)),
            str(model.queue_items),
            _or_dash(model.cache_hit_rate, format_share),
        )
    return table


def _format(row: Row, figures: Figures) -> str:
    return _or_dash(row.read(figures), row.format)


def _or_dash(value: float | None, write: Callable[[float], str]) -> str:
    return "–" if value is None else write(value)
