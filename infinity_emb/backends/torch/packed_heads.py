"""Packed input for models with a head: classifiers, rerankers, yes/no rerankers on language models.

The head reads certain positions of a padded batch. `PackedBase` replaces the network beneath the head: it
runs the network on packed sequences, and passes on the hidden states that the head reads as a (B, k, H)
batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling


@dataclass(frozen=True, slots=True)
class PackedSequences:
    """Packed sequences for the network."""

    features: dict[str, Any]  # input_ids (1, T), position_ids, packed_layout, …
    gather: Tensor  # (B, k) int64, indices of the tokens whose hidden states the head reads


class PackedBase(torch.nn.Module):
    """The network of a model with a head; passes input that is not packed through unchanged."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the network, as the model around it reads some."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    def forward(self, *args: Any, packed_sequences: PackedSequences | None = None, **kwargs: Any) -> Any:
        """Return the network's output; for packed sequences, that of the gathered tokens."""
        if packed_sequences is None:
            return self.network(*args, **kwargs)
        hidden = self.network(**packed_sequences.features, return_dict=True).last_hidden_state[0]  # (T, H)
        if packed_sequences.features["packed_layout"].pooled is not None:
            gathered = hidden.unsqueeze(1)  # (B, 1, H): the last layer has computed these alone
        else:
            gathered = hidden[packed_sequences.gather]  # (B, k, H)
        pooler = getattr(self.network, "pooler", None)
        if pooler is None:
            return BaseModelOutputWithPast(last_hidden_state=gathered)
        return BaseModelOutputWithPooling(
            last_hidden_state=gathered, pooler_output=self._pool(pooler, gathered)
        )

    def _pool(self, pooler: torch.nn.Module, gathered: Tensor) -> Tensor:
        """Return (B, H) from each first token; the network itself has pooled the first sequence only."""
        pooled: Tensor
        if isinstance(pooler, torch.nn.Linear):  # ALBERT
            pooled = self.pooler_activation(pooler(gathered[:, 0]))
        else:
            pooled = pooler(gathered)
        return pooled


def wrap_base(model: PreTrainedModel) -> bool:
    """Wrap the network beneath a model's head; return false if the model does not name it."""
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
