"""Give a test its own directory for graphs, conversions and decisions."""

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
    """Set INFINITY_HOME for the block, and let torch compute with one thread."""
    folder = tmp_path_factory.mktemp("home")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFINITY_HOME", str(folder))
        yield folder


@dataclass(frozen=True)
class Kept:
    """Replace `CachedArtifact` by a file that already exists."""

    file: Path

    def open_or_rebuild(self, open_it: Callable[[Path], T]) -> T:
        return open_it(self.file)
