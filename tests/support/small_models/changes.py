"""Changes to saved folders, as users and tools make them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


def rewrite_json(path: Path, **changes: Any) -> None:
    """Set some keys of a JSON object; None removes one."""
    values = json.loads(path.read_text()) if path.exists() else {}
    values |= changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Replace all tensors of `model.safetensors`."""
    path = folder / "model.safetensors"
    tensors = change(load_file(path))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})


def drop_weights(folder: Path, pattern: str) -> None:
    """Remove the tensors whose names contain a match of the pattern."""

    def drop(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        kept = {name: tensor for name, tensor in tensors.items() if not re.search(pattern, name)}
        assert len(kept) < len(tensors), f"no weight is called {pattern}"
        return kept

    change_weights(folder, drop)


def prefix_weights(folder: Path, prefix: str) -> None:
    """Put a prefix before each name, as wrappers do when their state is saved."""
    change_weights(folder, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})


def drop_padding_token(folder: Path) -> None:
    """Leave the tokenizer without a padding token."""
    rewrite_json(folder / "tokenizer_config.json", pad_token=None)
    values = json.loads((folder / "tokenizer.json").read_text()) | {"padding": None}
    (folder / "tokenizer.json").write_text(json.dumps(values))
