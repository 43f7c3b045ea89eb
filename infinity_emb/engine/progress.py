"""Show a progress bar for long work in interactive sessions and terminals, and nothing elsewhere."""

from __future__ import annotations

import sys
from typing import Protocol

MIN_ITEMS = 512


class ProgressBar(Protocol):
    """Count up to a total."""

    is_shown: bool

    def update(self, num_items: int) -> None:
        """Advance by this many items."""

    def close(self) -> None:
        """Remove or finish the bar."""


class _NoBar:
    is_shown = False

    def update(self, num_items: int) -> None:
        pass

    def close(self) -> None:
        pass


class _TqdmBar:
    is_shown = True

    def __init__(self, num_items: int | None, description: str, *, unit: str, num_done: int = 0) -> None:
        # tqdm comes with huggingface_hub; `auto` draws a widget in notebooks and a line in terminals.
        from tqdm.auto import tqdm

        self._bar = tqdm(total=num_items, initial=num_done, desc=description, unit=unit)

    def update(self, num_items: int) -> None:
        self._bar.update(num_items)

    def close(self) -> None:
        self._bar.close()


def is_interactive() -> bool:
    """Return true in a notebook kernel or an interactive shell."""
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules


def is_watched() -> bool:
    """Return true in an interactive session, or if stderr is a terminal."""
    return is_interactive() or sys.stderr.isatty()


def open_progress_bar(num_items: int, description: str, *, is_shown: bool | None = None) -> ProgressBar:
    """Open a bar over `num_items`.

    is_shown: None shows it in interactive sessions and for many items only.
    """
    if is_shown is None:
        is_shown = num_items >= MIN_ITEMS and is_interactive()
    return _TqdmBar(num_items, description, unit="text") if is_shown else _NoBar()


def open_terminal_bar(num_items: int | None, description: str, *, num_done: int) -> ProgressBar:
    """Open a bar with rate and remaining time if stderr is a terminal.

    num_items: None if unknown.
    """
    if not sys.stderr.isatty():
        return _NoBar()
    return _TqdmBar(num_items, description, unit="row", num_done=num_done)
