"""Arrange the weights of linear layers in memory as CPUs multiply few rows fastest."""

from __future__ import annotations

import torch
from sentence_transformers.base.model import BaseModel
from torch import nn

from infinity_emb.backends.torch.st_introspection import find_transformers


def store_input_major(model: BaseModel) -> None:
    """Store each (N, K) float32 weight of the networks' linear layers as (K, N) in memory.

    Values and shapes stay, only strides change. MKL multiplies few rows by such a weight up to twice as fast,
    as it need not transpose it first; many rows take as long as before. A weight that is shared with an
    embedding is left alone, since a lookup reads its rows.
    """
    for transformer in find_transformers(model):
        modules = list(transformer.model.modules())
        others = [module for module in modules if type(module) is not nn.Linear]
        shared = {id(weight) for module in others for weight in module.parameters(recurse=False)}
        for module in modules:
            if type(module) is nn.Linear and id(module.weight) not in shared:
                _transpose_storage(module.weight)


def _transpose_storage(weight: nn.Parameter) -> None:
    if weight.dtype == torch.float32:
        weight.data = weight.data.t().contiguous().t()
