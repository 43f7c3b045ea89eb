"""A folder of a test's own for what engines make of models: graphs, conversions, decisions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch


@contextmanager
def engine_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """INFINITY_HOME until the block ends; torch computes with one thread."""
    folder = tmp_path_factory.mktemp("home")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFINITY_HOME", str(folder))
        yield folder
