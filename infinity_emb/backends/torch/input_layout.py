"""Describe how a model takes its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

# The hidden states that later modules or a head read: those of packed sequences ("flat"), of each sequence's
# first or last token, or of all tokens as a padded batch.
HeadReads = Literal["flat", "first", "last", "all"]
PooledToken = Literal["first", "last"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLayout:
    """Layout of a model's inputs."""

    form: Literal["packed", "padded", "bag"]
    reads: HeadReads = "flat"  # for packed inputs
    # The only token of each text whose output is read, so that the last layer computes no other.
    pooled_token: PooledToken | None = None
    position_offset: int = 0  # position of the first token; RoBERTa counts from padding_idx + 1
    may_pad: bool = True  # else only inputs of equal length share a padded batch
    has_type_ids: bool = False
    pad_token_id: int = 0
    pads_left: bool = False
    # A classifier on a decoder reads the last token that is not this one; None if it reads the last.
    skipped_token_id: int | None = None
    # Features of every batch.
    constants: Mapping[str, Any] = field(default_factory=dict)


def get_first_position(network: torch.nn.Module) -> int:
    """Return the position of the first token: RoBERTa's positions start after its padding index, others at 0.

    RoBERTa's embeddings are recognized by having both a padding index and a table of positions.
    """
    for module in network.modules():
        padding_idx = getattr(module, "padding_idx", None)
        if isinstance(padding_idx, int) and isinstance(
            getattr(module, "position_embeddings", None), torch.nn.Embedding
        ):
            return padding_idx + 1
    return 0
