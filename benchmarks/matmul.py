"""How fast this machine multiplies matrices of the default model's shapes: nothing exact can be faster."""

from __future__ import annotations

import time

import torch
from torch.nn.functional import linear

HIDDEN, INTERMEDIATE, NUM_LAYERS = 384, 1536, 6
_SHAPES = ((HIDDEN, HIDDEN), (HIDDEN, INTERMEDIATE), (INTERMEDIATE, HIDDEN))


def model_matmul_flops_per_token() -> int:
    """Two operations a weight: four square products and two of the feed-forward, per layer."""
    return NUM_LAYERS * 2 * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INTERMEDIATE)


def matmul_flops_per_s(num_rows: int = 1024) -> float:
    """The best of a few runs over the shapes, each by its share of the model."""
    flops = 2 * num_rows * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INTERMEDIATE)
    seconds = sum(
        _seconds(num_rows, inputs, outputs) * (4 if inputs == outputs else 1) for inputs, outputs in _SHAPES
    )
    return flops / seconds


def _seconds(num_rows: int, inputs: int, outputs: int) -> float:
    rows, weight = torch.randn(num_rows, inputs), torch.randn(outputs, inputs)
    best_s = float("inf")
    with torch.inference_mode():
        for _ in range(8):
            started_s = time.perf_counter()
            linear(rows, weight)
            best_s = min(best_s, time.perf_counter() - started_s)
    return best_s
