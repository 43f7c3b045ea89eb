"""Measure matrix products of the default model's shapes: no exact engine can be faster."""

from __future__ import annotations

import time

import torch
from torch.nn.functional import linear

HIDDEN, INTERMEDIATE, NUM_LAYERS = 384, 1536, 6
_SHAPES = ((HIDDEN, HIDDEN), (HIDDEN, INTERMEDIATE), (INTERMEDIATE, HIDDEN))


def count_matmul_flops_per_token() -> int:
    """Count two operations per weight: four square products and two feed-forward ones in each layer."""
    return NUM_LAYERS * 2 * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INTERMEDIATE)


def measure_matmul_flops_per_s(num_rows: int = 1024) -> float:
    """Return the best rate of a few runs, each shape weighted by its share of the model."""
    flops = 2 * num_rows * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INTERMEDIATE)
    seconds = sum(
        _time_product(num_rows, inputs, outputs) * (4 if inputs == outputs else 1)
        for inputs, outputs in _SHAPES
    )
    return flops / seconds


def _time_product(num_rows: int, inputs: int, outputs: int) -> float:
    rows, weight = torch.randn(num_rows, inputs), torch.randn(outputs, inputs)
    best_s = float("inf")
    with torch.inference_mode():
        for _ in range(8):
            started_s = time.perf_counter()
            linear(rows, weight)
            best_s = min(best_s, time.perf_counter() - started_s)
    return best_s
