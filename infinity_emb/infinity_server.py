"""Import names of infinity_emb 0.0.77 that the package `embed` and older code use."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any


class AutoPadding:
    """Keyword arguments for each of several models.

        AutoPadding(length=2, model_name_or_path=["a", "b"], batch_size=32)

    A list or tuple holds one value for all models, or one per model; any other value is for all models.
    Iterating raises ValueError for a list of another length.
    """

    def __init__(self, length: int, **kwargs: Any) -> None:
        self.length = length
        self.kwargs = kwargs

    def __iter__(self) -> Iterator[dict[str, Any]]:
        columns = {name: self._column(name, value) for name, value in self.kwargs.items()}
        for position in range(self.length):
            yield {name: column[position] for name, column in columns.items()}

    def _column(self, name: str, value: Any) -> list[Any]:
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if len(values) not in (1, self.length):
            raise ValueError(
                f"{name} has {len(values)} values for {self.length} models; give one, or one each"
            )
        return values if len(values) == self.length else values * self.length


def __getattr__(name: str) -> Any:
    if name != "create_server":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("infinity_emb.server.app").create_server
