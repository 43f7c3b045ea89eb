"""Compute the RMS norms of a network in two kernels instead of eight, on devices where torch fuses them.

Values are rounded where transformers rounds them: after the norm, and after the weight. Only the order in
which squares are added may differ.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from infinity_emb.backends.torch.backend import TorchBackend
from infinity_emb.backends.torch.eager_outputs import EagerOutputs, Score, compute_entries
from infinity_emb.backends.torch.st_introspection import find_transformers
from infinity_emb.items import Encoded

logger = logging.getLogger("infinity_emb")

_NUM_PROBES = 8
# Of the values of probes. Norms that round once, after the weight, differ in many of them.
_MIN_EQUAL_SHARE = 0.99


class FusedNorm(nn.Module):
    """Compute what an RMS norm of transformers computes, with its weight."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.variance_epsilon = epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return (..., D) in the dtype of the input."""
        return self.weight * rms_norm(hidden_states, self.weight.shape, eps=self.variance_epsilon)


class Place(NamedTuple):
    """A norm of a network, and the module that has it under this name."""

    parent: nn.Module
    name: str
    norm: nn.Module


def fuse_norms(backend: TorchBackend, samples: Sequence[Sequence[Encoded]], score: Score) -> bool:
    """Fuse the norms unless that changes a decision, and return whether they are fused.

    samples: texts for each spec that texts have.
    score: outputs → the scores by which clients decide.
    """
    networks = [transformer.model for transformer in find_transformers(backend.torch_model.model)]
    places = [place for network in networks for place in list_norms(network)]
    if not places or not samples:
        return False
    backend.prepare_thread()
    before = [EagerOutputs(backend, items, score) for items in samples]
    install(places)
    for eager, items in zip(before, samples, strict=True):
        objection = eager.find_objection(compute_entries(backend, items, len(items)))
        if objection:
            for place in places:
                setattr(place.parent, place.name, place.norm)
            logger.warning("norms are not fused, because the output %s", objection)
            return False
    return True


def list_norms(network: nn.Module) -> list[Place]:
    """Return the RMS norms whose fused form computes the same."""
    return [
        Place(parent, name, norm)
        for parent in network.modules()
        for name, norm in parent.named_children()
        if "RMSNorm" in type(norm).__name__
        and not isinstance(norm, nn.RMSNorm)
        and isinstance(getattr(norm, "weight", None), nn.Parameter)
        and _find_epsilon(norm) is not None
        and len(inspect.signature(norm.forward).parameters) == 1  # others take a gate or a residual, too
        and _is_plain(norm)
    ]


def install(places: list[Place]) -> None:
    """Replace norms by fused ones."""
    for place in places:
        setattr(place.parent, place.name, _fuse(place.norm))


def _fuse(norm: nn.Module) -> FusedNorm:
    weight, epsilon = norm.weight, _find_epsilon(norm)
    assert isinstance(weight, nn.Parameter)
    assert epsilon is not None
    return FusedNorm(weight, epsilon)


def _find_epsilon(norm: nn.Module) -> float | None:
    values = (getattr(norm, name, None) for name in ("variance_epsilon", "eps"))
    return next((value for value in values if isinstance(value, float)), None)


def _is_plain(norm: nn.Module) -> bool:
    """Return whether a norm computes what its fused form does; some add 1 to their weight or round once."""
    weight = norm.weight
    assert isinstance(weight, nn.Parameter)
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(_NUM_PROBES, *weight.shape, generator=generator)
    probes[0] *= 1e-3  # where epsilon matters
    probes = probes.to(weight.device, weight.dtype)
    with torch.inference_mode():
        found, expected = _fuse(norm)(probes), norm(probes)
        is_equal = (found == expected).float().mean() >= _MIN_EQUAL_SHARE
        return found.dtype == expected.dtype and bool(is_equal)
