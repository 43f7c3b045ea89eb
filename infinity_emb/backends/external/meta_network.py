"""Build a model's network from its configuration alone, for repositories that have a graph and no torch
weights.

The modules around a network expect one of torch: they read its configuration, its inputs and the size of its
vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from infinity_emb.hub.file_selection import has_weights


@contextlib.contextmanager
def empty_networks() -> Iterator[list[PreTrainedModel]]:
    """Let transformers build networks without weights from a configuration, inside the block.

    Their memory is never written and so takes no space. They are added to the list, and must not be executed.
    Other threads must not load models meanwhile.
    """
    made: list[PreTrainedModel] = []
    original: Any = PreTrainedModel.__dict__["from_pretrained"]

    def from_pretrained(cls: type[PreTrainedModel], path: Any, *given: Any, **options: Any) -> Any:
        config = options.get("config")
        folder = Path(path) / (options.get("subfolder") or "")
        # For a name on the hub, transformers finds the files, and reports missing ones.
        if config is None or not folder.is_dir() or has_weights(folder):
            return original.__func__(cls, path, *given, **options)
        with no_init_weights():
            network: PreTrainedModel = cls._from_config(  # type: ignore[no-untyped-call]  # it has no hint
                config, dtype=options.get("dtype")
            )
        made.append(network)
        return network

    setattr(PreTrainedModel, original.__name__, classmethod(from_pretrained))
    try:
        yield made
    finally:
        setattr(PreTrainedModel, original.__name__, original)
