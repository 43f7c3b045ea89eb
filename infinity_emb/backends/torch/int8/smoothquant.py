"""Find the layers of a network that can be computed in int8, and the factors that smooth their inputs.

A few input channels of a transformer have far larger values than all others, which makes the quantization
step too large for the others. Each channel is divided by a factor and its weights are multiplied by it, which
changes only rounding. The strength of smoothing is chosen for each layer.

Source: Xiao et al. 2022, SmoothQuant, https://arxiv.org/abs/2211.10438
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# The strengths to try: 0 leaves outliers in the inputs, 1 moves them to the weights.
_STRENGTHS = (0.4, 0.5, 0.6)
# Smoothing must reduce the rounding error to less than this fraction to be worth its time.
_WORTHWHILE = 0.75
# Rows that are kept of each forward pass, for measuring the error.
_NUM_KEPT = 3
# A channel that was small in all samples may be larger in others.
_SMALLEST_PART = 0.01


# (rows, weight, smoothing) → relative rounding error
RoundingError = Callable[[Tensor, Tensor, Tensor | None], float]


@dataclass(slots=True, eq=False)
class SharedInput:
    """Samples of the input of one layer, or of several layers that read the same tensor.

    largest: (K,), the largest absolute value of each channel. samples: (n, K), unchanged rows.
    """

    layers: list[nn.Linear] = field(default_factory=list)
    largest: Tensor | None = None
    samples: list[Tensor] = field(default_factory=list)

    def see(self, read: Tensor) -> None:
        """Update the ranges and keep a few rows. read: (…, K)."""
        rows = read.detach().reshape(-1, read.shape[-1])
        seen = rows.abs().amax(dim=0)
        self.largest = seen if self.largest is None else torch.maximum(self.largest, seen)
        self.samples.append(rows[:: -(-len(rows) // _NUM_KEPT)].clone())

    def best_smoothing(self, error: RoundingError) -> Tensor | None:
        """Return (K,) float32, the best divisors of the channels; None if the gain is too small."""
        rows, weight = torch.cat(self.samples), torch.cat([each.weight.detach() for each in self.layers])
        errors = {each: error(rows, weight, self._smoothing(each, weight)) for each in _STRENGTHS}
        best = min(errors, key=errors.__getitem__)
        is_worth_it = errors[best] < _WORTHWHILE * error(rows, weight, None)
        return self._smoothing(best, weight) if is_worth_it else None

    def _smoothing(self, strength: float, weight: Tensor) -> Tensor:
        assert self.largest is not None
        largest_weights = weight.abs().amax(dim=0)
        factors: Tensor = _floored(self.largest) ** strength / _floored(largest_weights) ** (1 - strength)
        return factors


def _floored(largest: Tensor) -> Tensor:
    return largest.clamp(min=max(float(largest.mean()) * _SMALLEST_PART, torch.finfo(torch.float32).tiny))


def list_inner_linears(networks: Iterable[nn.Module]) -> list[nn.Linear]:
    """Return the `Linear` layers, subclasses excluded, in the networks' blocks, without heads and poolers."""
    found: dict[nn.Linear, None] = {}
    for network in networks:
        stacks = (module for module in network.modules() if isinstance(module, nn.ModuleList))
        for module in (module for stack in stacks for module in stack.modules()):
            if type(module) is nn.Linear:
                found[module] = None
    return list(found)


@contextlib.contextmanager
def record_inputs(layers: Sequence[nn.Linear]) -> Iterator[list[SharedInput]]:
    """Record the inputs of the layers until the end of the block; layers that are not used are left out."""
    seen: list[SharedInput] = []
    by_layer: dict[nn.Linear, SharedInput] = {}
    latest: tuple[Tensor, SharedInput] | None = None

    def see(layer: Any, args: tuple[Any, ...]) -> None:
        nonlocal latest
        rows: Tensor = args[0]
        is_shared = latest is not None and latest[0] is rows
        if layer not in by_layer:
            if latest is None or not is_shared:
                seen.append(SharedInput())
            by_layer[layer] = latest[1] if latest is not None and is_shared else seen[-1]
            by_layer[layer].layers.append(layer)
        if not is_shared:
            by_layer[layer].see(rows)
        latest = rows, by_layer[layer]

    handles = [layer.register_forward_pre_hook(see) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
