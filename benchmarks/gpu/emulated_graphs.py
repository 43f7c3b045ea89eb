"""Emulate CUDA graphs: write down the operators of a block with their tensors, and run them again.

As on a GPU a replay runs no Python of the model, reads the tensors that the block has read and writes into
those that it has written; what would make the host wait raises while it is captured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

Step = Callable[[], None]

_captures: list[list[Step]] = []
_replays: list[int] = []


class EmulatedGraph:
    """Stand in for `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def replay(self) -> None:
        """Run the captured operators on their tensors."""
        for step in self.steps:
            step()
        _replays.append(len(self.steps))

    def reset(self) -> None:
        """Forget what was captured."""
        self.steps.clear()


@contextlib.contextmanager
def capture(graph: EmulatedGraph, **options: Any) -> Iterator[None]:
    """Stand in for `torch.cuda.graph`."""
    _captures.append(graph.steps)
    try:
        yield
    finally:
        _captures.pop()


def is_capturing() -> bool:
    """Return whether operators are being written down."""
    return bool(_captures)


def count_replays() -> int:
    """Return how many graphs have been replayed in this process."""
    return len(_replays)


def note(run: Callable[[], Any], outputs: list[Tensor], inputs: list[Tensor]) -> None:
    """Write an operator down. Outputs that are inputs, or views of them, are not copied again."""
    if not _captures:
        return
    storages = {each.untyped_storage()._cdata for each in inputs}
    fresh = [
        (index, output)
        for index, output in enumerate(outputs)
        if output.untyped_storage()._cdata not in storages
    ]

    def step() -> None:
        found = run()
        computed = list(_tensors(found))
        for index, output in fresh:
            output.copy_(computed[index])

    _captures[-1].append(step)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
