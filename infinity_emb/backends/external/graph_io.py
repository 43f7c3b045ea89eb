"""Make the inputs of an ONNX graph and find its output, by the names that exporters use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from infinity_emb.errors import StartupError

# The inputs that a graph may have; all can be made from the tokens.
INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
# Names of the token vectors in graphs of optimum and sentence-transformers.
_TOKEN_OUTPUTS = ("last_hidden_state", "token_embeddings")


def check_inputs(names: Iterable[str]) -> None:
    """Check that tokens suffice as inputs of a graph. Raises StartupError."""
    if unknown := sorted(set(names) - set(INPUT_NAMES)):
        raise StartupError(f"the graph needs the inputs {', '.join(unknown)}, which texts do not have")


def find_output(names: Iterable[str], *, wanted: str) -> str:
    """Return the name of the wanted output in the graph. Raises StartupError if there is none."""
    accepted = _TOKEN_OUTPUTS if wanted in _TOKEN_OUTPUTS else (wanted,)
    names = list(names)
    for name in accepted:
        if name in names:
            return name
    raise StartupError(
        f"the graph has the outputs {', '.join(names)}, but the model needs {' or '.join(accepted)}"
    )


def make_input(name: str, features: Mapping[str, Any], *, first_position: int = 0) -> Tensor:
    """Return an input of the graph, (B, S), made from the token ids if the tokenizer does not provide it.

    first_position: first row of the position table that is not for padding.
    """
    given = features.get(name)
    if given is None and name == "token_type_ids":
        given = torch.zeros_like(features["input_ids"])
    if given is None and name == "position_ids":
        given = _positions(features["input_ids"], features["attention_mask"], first_position)
    assert isinstance(given, Tensor), f"the pipeline gives no {name}"
    return given


def make_inputs(
    types: Mapping[str, str],
    torch_types: Mapping[str, torch.dtype],
    features: Mapping[str, Any],
    *,
    first_position: int,
) -> dict[str, Tensor]:
    """Return all inputs of the graph, contiguous and with the types it requires.

    types: the library's name of each input's type, by the name of the input.
    torch_types: translate those to torch's.
    """
    return {
        name: make_input(name, features, first_position=first_position).to(torch_types[each]).contiguous()
        for name, each in types.items()
    }


def _positions(ids: Tensor, mask: Tensor, first: int) -> Tensor:
    """Count positions like transformers: (B, S) int64, starting at `first`."""
    if first:
        # RoBERTa skips its padding token wherever it occurs; the position of padding is that token's id.
        is_counted = (ids != first - 1).long()
        return is_counted.cumsum(dim=1) * is_counted + first - 1
    num_before = mask.argmax(dim=1, keepdim=True)  # (B, 1): padding on the left
    return (torch.arange(ids.shape[1], device=ids.device) - num_before).clamp(min=0)
