"""Measure matrix products of the default model's shapes: no exact engine can be faster."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from infinity_emb.backends.torch.cpu_weights import to_input_major
from infinity_emb.backends.torch.onednn_products import onednn_linear

HIDDEN, INTERMEDIATE, NUM_LAYERS = 384, 1536, 6
# Inputs and outputs of the products of a layer.
_LAYER = (*[(HIDDEN, HIDDEN)] * 4, (HIDDEN, INTERMEDIATE), (INTERMEDIATE, HIDDEN))
_NUM_PASSES = 8


def count_matmul_flops_per_token() -> int:
    """Count two operations per weight: four square products and two feed-forward ones in each layer."""
    return NUM_LAYERS * 2 * sum(inputs * outputs for inputs, outputs in _LAYER)


def measure_matmul_flops_per_s(num_rows: int = 1024) -> float:
    """Return the best rate of a few passes through as many weights as the model has.

    So each weight is read from where a model's is, not from a cache that only one weight would fit in. Each
    product counts in the fastest of three ways: with weights as in files, stored by input, and by oneDNN.
    """
    shapes = _LAYER * NUM_LAYERS
    as_in_files = [torch.randn(outputs, inputs) for inputs, outputs in shapes]
    by_input = list(map(to_input_major, as_in_files))
    rows = {inputs: torch.randn(num_rows, inputs) for inputs, _ in _LAYER}
    ways: list[tuple[list[Tensor], Callable[..., Tensor]]] = [
        (as_in_files, linear),
        (by_input, linear),
        (by_input, onednn_linear),
    ]
    times_s = [_time_passes(weights, rows, compute) for weights, compute in ways]
    best_s = [min(times) for times in zip(*times_s, strict=True)]
    flops_per_s: float = num_rows * count_matmul_flops_per_token() / sum(best_s)
    return flops_per_s


def _time_passes(
    weights: list[Tensor], rows: dict[int, Tensor], compute: Callable[..., Tensor]
) -> list[float]:
    """Return the shortest time of each product over a few passes."""
    best_s = [float("inf")] * len(weights)
    with torch.inference_mode():
        for _ in range(_NUM_PASSES):
            for number, weight in enumerate(weights):
                inputs = rows[weight.shape[1]]
                started_s = time.perf_counter()
                compute(inputs, weight, None)
                best_s[number] = min(best_s[number], time.perf_counter() - started_s)
    return best_s
