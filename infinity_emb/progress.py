"""A progress bar for long work in a notebook or an interactive shell, and silence everywhere else.

Knows nothing of what is counted.
"""

from __future__ import annotations

import sys
from typing import Protocol

MIN_ITEMS = 512


class ProgressBar(Protocol):
    """Counts up to a total."""

    is_shown: bool

    def update(self, num_items: int) -> None:
        """So many more are done."""

    def close(self) -> None:
        """No more will come."""


class _NoBar:
    is_shown = False

    def update(self, num_items: int) -> None:
        pass

    def close(self) -> None:
        pass


class _TqdmBar:
    is_shown = True

    def __init__(self, num_items: int, description: str) -> None:
        # tqdm comes with huggingface_hub; `auto` draws a widget in notebooks and a line in terminals.
        from tqdm.auto import tqdm

        self._bar = tqdm(total=num_items, desc=description, unit="text")

    def update(self, num_items: int) -> None:
        self._bar.update(num_items)

    def close(self) -> None:
        self._bar.close()


def is_interactive() -> bool:
    """Whether a person sits at this interpreter: a notebook kernel or a prompt."""
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules


def open_progress_bar(num_items: int, description: str) -> ProgressBar:
    """A bar over `num_items`, visible only to a person and only for work that takes a while."""
    if num_items < MIN_ITEMS or not is_interactive():
        return _NoBar()
    return _TqdmBar(num_items, description)
