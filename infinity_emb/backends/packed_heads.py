"""Packed input for models with a head of their own: classifiers, rerankers, yes/no rerankers on LLMs.

Their forward runs a network and then a head that reads certain positions of a padded batch, so a flat row
cannot be handed to it. `PackedBase` stands where the network stood: it runs the network on the flat row and
hands the head the rows that it reads, as a (B, k, H) batch. The head itself is the model's own.
Knows nothing of sentence-transformers, nor of which rows a head reads (`torch_layout.py` finds that out).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling


@dataclass(frozen=True, slots=True)
class PackedRow:
    """A flat row on its way to the network."""

    features: dict[str, Any]  # input_ids (1, T), position_ids, packed_layout, …
    gather: Tensor  # (B, k) int64, places in the row whose hidden states the head reads


class PackedBase(torch.nn.Module):
    """The network of a model with a head; does nothing of its own where no packed row is given."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def __getattr__(self, name: str) -> Any:
        """Whatever the model around it asks of its network."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    def forward(self, *args: Any, packed_row: PackedRow | None = None, **kwargs: Any) -> Any:
        """The network's output; with a packed row, that of the gathered tokens alone."""
        if packed_row is None:
            return self.network(*args, **kwargs)
        hidden = self.network(**packed_row.features, return_dict=True).last_hidden_state[0]  # (T, H)
        rows = hidden[packed_row.gather]  # (B, k, H)
        pooler = getattr(self.network, "pooler", None)
        if pooler is None:
            return BaseModelOutputWithPast(last_hidden_state=rows)
        return BaseModelOutputWithPooling(last_hidden_state=rows, pooler_output=self._pool(pooler, rows))

    def _pool(self, pooler: torch.nn.Module, rows: Tensor) -> Tensor:
        """(B, H), from each first token; the network's own pooling saw the flat row's first token only."""
        pooled: Tensor
        if isinstance(pooler, torch.nn.Linear):  # ALBERT
            pooled = self.pooler_activation(pooler(rows[:, 0]))
        else:
            pooled = pooler(rows)
        return pooled


def wrap_base(model: PreTrainedModel) -> bool:
    """Put a `PackedBase` in the place of the model's network; false where the model has none to name."""
    prefix = model.base_model_prefix
    network = getattr(model, prefix, None) if prefix else None
    if not isinstance(network, torch.nn.Module) or isinstance(network, PackedBase):
        return isinstance(network, PackedBase)
    setattr(model, prefix, PackedBase(network))
    return True


def unwrap_base(model: PreTrainedModel) -> None:
    """Undo `wrap_base`."""
    network = getattr(model, model.base_model_prefix, None)
    if isinstance(network, PackedBase):
        setattr(model, model.base_model_prefix, network.network)
