"""Compute the RMS norms of a network in two kernels instead of eight, on devices where torch fuses them.

Values are rounded where transformers rounds them: after the norm, and after the weight. Only the order in
which squares are added may differ.
"""

from __future__ import annotations

import copy
import functools
import inspect

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from infinity_emb.backends.torch.eager_outputs import replace_classes
from infinity_emb.backends.torch.module_classes import Classes, set_classes

_NUM_PROBES = 8
# Of the values of probes. Norms that round once, after the weight, differ in many of them.
_MIN_EQUAL_SHARE = 0.99


class FusedNorm(nn.Module):
    """Compute what an RMS norm of transformers computes; the class of its norms that are fused."""

    weight: nn.Parameter

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return (..., D) in the dtype of the input."""
        return self.weight * rms_norm(hidden_states, self.weight.shape, eps=_find_epsilon(self))


def find_norms(network: nn.Module) -> Classes:
    """Return the RMS norms whose fused form computes the same, with its class."""
    return {
        norm: FusedNorm
        for norm in network.modules()
        if "RMSNorm" in type(norm).__name__
        and not isinstance(norm, nn.RMSNorm)
        and isinstance(getattr(norm, "weight", None), nn.Parameter)
        and _find_epsilon(norm) is not None
        and len(inspect.signature(norm.forward).parameters) == 1  # others take a gate or a residual, too
        and _is_plain(norm)
    }


fuse_norms = functools.partial(replace_classes, find=find_norms, refusal="norms are not fused")


def _find_epsilon(norm: nn.Module) -> float | None:
    epsilon = getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", None)
    return epsilon if isinstance(epsilon, float) else None


def _is_plain(norm: nn.Module) -> bool:
    """Return whether a norm computes what its fused form does; some add 1 to their weight or round once."""
    weight = norm.weight
    assert isinstance(weight, nn.Parameter)
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(_NUM_PROBES, *weight.shape, generator=generator)
    probes[0] *= 1e-3  # where epsilon matters
    probes = probes.to(weight.device, weight.dtype)
    fused = copy.copy(norm)
    set_classes({fused: FusedNorm})
    with torch.inference_mode():
        found, expected = fused(probes), norm(probes)
        is_equal = (found == expected).float().mean() >= _MIN_EQUAL_SHARE
        return found.dtype == expected.dtype and bool(is_equal)
