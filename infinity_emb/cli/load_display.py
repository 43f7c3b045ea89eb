"""Show the progress of loading models in a terminal, and add up the time of each stage."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from infinity_emb.storage.load_progress import LoadProgress, LoadStage, listen

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


class StageTimes:
    """Add up the seconds of each stage, in the order in which the stages began."""

    def __init__(self) -> None:
        self.seconds: dict[LoadStage, float] = {}
        self._stage: LoadStage | None = None
        self._started_s = 0.0

    def enter(self, stage: LoadStage | None) -> None:
        """End the previous stage and begin this one; None begins none."""
        now_s = time.monotonic()
        if self._stage is not None:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now_s - self._started_s
        self._stage, self._started_s = stage, now_s


@contextlib.contextmanager
def watch_loads(names: list[str], *, is_drawn: bool) -> Iterator[StageTimes]:
    """Follow the loads of these models, which begin in this order; draw a bar until the end of the block.

    is_drawn: whether stderr is an interactive terminal.
    """
    times = StageTimes()
    with _open_bar() if is_drawn else contextlib.nullcontext() as progress:
        display = _LoadDisplay(names, times, progress)
        try:
            with listen(display.show):
                yield times
        finally:
            times.enter(None)


class _LoadDisplay:
    """Turn reports into one line: the model, its stage, and a bar, which is full after a download."""

    def __init__(self, names: list[str], times: StageTimes, progress: Progress | None) -> None:
        self._names = names
        self._times = times
        self._progress = progress
        self._task = progress.add_task("", total=None) if progress else None
        self._number = 0
        self._reached: LoadStage | None = None

    def show(self, report: LoadProgress) -> None:
        """Show one report."""
        if report.stage != self._reached:
            # Each load begins by finding its files, except that of a model without files.
            self._number += report.stage == "finding files" or self._reached is None
            self._reached = report.stage
            self._times.enter(report.stage)
        if self._progress is None or self._task is None:
            return
        position = f" ({self._number} of {len(self._names)})" if len(self._names) > 1 else ""
        size = (
            f" {report.num_bytes / 1e6:,.0f} of {report.total_bytes / 1e6:,.0f} MB"
            if report.total_bytes
            else ""
        )
        name = self._names[min(self._number, len(self._names)) - 1]
        self._progress.update(
            self._task,
            description=f"{name}{position}: {report.stage}{size}",
            completed=report.num_bytes,
            total=report.total_bytes or None,
        )


@contextlib.contextmanager
def _open_bar() -> Iterator[Progress]:
    """Draw a bar below the lines of the log, and remove it at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    class VisibleCursorConsole(Console):
        """Leave the cursor alone: a signal may end the process before it would be shown again."""

        def show_cursor(self, show: bool = True) -> bool:
            return False

    console = VisibleCursorConsole(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(20), TimeElapsedColumn())
    with _log_above(console), Progress(*columns, console=console, transient=True) as progress:
        yield progress


@contextlib.contextmanager
def _log_above(console: Console) -> Iterator[None]:
    """Let the handlers of the log write to the console, which keeps the bar below."""
    handlers = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
    ]
    streams = [handler.stream for handler in handlers]
    for handler in handlers:
        handler.setStream(_ConsoleStream(console))
    try:
        yield
    finally:
        for handler, stream in zip(handlers, streams, strict=True):
            handler.setStream(stream)


class _ConsoleStream(io.TextIOBase):
    """Write lines as they are: neither wrapped nor coloured."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def write(self, text: str) -> int:
        self._console.out(text, end="", highlight=False)
        return len(text)
