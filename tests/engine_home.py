"""A folder of a test's own for what engines make of models: graphs, conversions, decisions; one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import torch

T = TypeVar("T")


@contextmanager
def engine_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """INFINITY_HOME until the block ends; torch computes with one thread."""
    folder = tmp_path_factory.mktemp("home")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFINITY_HOME", str(folder))
        yield folder


@dataclass(frozen=True)
class Kept:
    """In the place of `MadeOnce`: a file that is there, and made by nobody."""

    file: Path

    def opened(self, open_it: Callable[[Path], T]) -> T:
        return open_it(self.file)
