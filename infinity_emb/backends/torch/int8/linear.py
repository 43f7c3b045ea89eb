"""Linear layers with int8 weights and uint8 activations for CPUs, computed by oneDNN.

Each output channel has a scale, and each row of activations a minimum and a step, so that a row does not
depend on the others of its batch. The product of integers is exact; only rounding loses precision.
"""

from __future__ import annotations

import functools
import threading
from typing import NamedTuple

import torch
from torch import Tensor, nn

_MAX_CODE = 255  # of activations, uint8
_MAX_WEIGHT = 127  # of weights, int8 of either sign
_SMALLEST_STEP = 1e-30  # for rows with equal values
_MAX_KEPT_VALUES = 2**23


class CodedRows(NamedTuple):
    """Quantized rows: the smoothed input is about `low + step * codes`."""

    codes: Tensor  # (T, K) uint8
    low: Tensor  # (T, 1) float32
    step: Tensor  # (T, 1) float32


class LastRows(threading.local):
    """Cache of the rows that a thread quantized last, since query, key and value have the same input.

    Thread-local because replicas on a CPU share the layers. Its buffers are reused: allocating memory in each
    layer costs a fifth of the speed.
    """

    coder: RowCoder | None = None
    read: Tensor | None = None  # kept alive, so that no other tensor can be mistaken for it
    coded: CodedRows | None = None

    def __init__(self) -> None:
        self._kept: dict[torch.dtype, Tensor] = {}

    def get_buffer(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return a buffer, the same memory at each call unless the batch is very large."""
        num_values = shape.numel()
        kept = self._kept.get(dtype)
        if kept is None or len(kept) < num_values:
            with torch.inference_mode(False):  # so that it can be written to in both modes
                kept = torch.empty(num_values, dtype=dtype)
            if num_values <= _MAX_KEPT_VALUES:
                self._kept[dtype] = kept
        return kept[:num_values].view(shape)


class RowCoder:
    """Quantize the input of one layer, or of several that have the same input.

    smoothing: (K,) float32 or None; each input channel is divided by it and its weights are multiplied by it.
    last: shared by all coders of a model.
    """

    def __init__(self, smoothing: Tensor | None, last: LastRows) -> None:
        self.smoothing = smoothing
        self._factors = None if smoothing is None else smoothing.reciprocal()
        self._last = last

    def code(self, read: Tensor) -> CodedRows:
        """Quantize (…, K) float32, which must not change before all layers have read it."""
        last = self._last
        if last.read is not read or last.coder is not self or last.coded is None:
            rows = read.reshape(-1, read.shape[-1])  # (T, K)
            last.coder, last.read, last.coded = self, read, code_rows(rows, self._factors, last)
        return last.coded


def code_rows(rows: Tensor, factors: Tensor | None = None, memory: LastRows | None = None) -> CodedRows:
    """Quantize (T, K) float32, each row with its range; NaN and infinity become NaN in a product.

    factors: (K,) float32; the channels are multiplied by them first.
    memory: buffers for the result, which the next call overwrites.
    """
    memory = memory or LastRows()
    own = memory.get_buffer(rows.shape, torch.float32)
    smooth = rows if factors is None else torch.mul(rows, factors, out=own)
    # amin and amax use vector instructions where aminmax does not: 30 times faster.
    low = smooth.amin(dim=1, keepdim=True)  # (T, 1)
    step = ((smooth.amax(dim=1, keepdim=True) - low) / _MAX_CODE).clamp_(min=_SMALLEST_STEP)
    # Half a step lower, so that truncation rounds.
    scaled = torch.sub(smooth, low - step / 2, out=own).mul_(step.reciprocal())
    # Via int16: torch converts float32 to int16 and int16 to uint8 with vector instructions; converting
    # directly takes four times as long.
    cut = memory.get_buffer(rows.shape, torch.int16).copy_(scaled)
    codes = memory.get_buffer(rows.shape, torch.uint8).copy_(cut)
    return CodedRows(codes, low, step)


def measure_rounding_error(rows: Tensor, weight: Tensor, smoothing: Tensor | None) -> float:
    """Return the mean over the rows of the squared rounding error, relative to the exact output.

    rows: (T, K) float32. weight: (N, K) float32. smoothing: (K,) float32 or None.
    """
    factors = torch.ones(rows.shape[1]) if smoothing is None else smoothing
    coded, rounded = code_rows(rows, factors.reciprocal()), round_weight(weight * factors)
    exact = rows @ weight.T
    found = (coded.low + coded.step * coded.codes) @ (rounded.scales[:, None] * rounded.codes).T
    return float(((found - exact).square().sum(dim=1) / exact.square().sum(dim=1)).nanmean())


class Int8Linear(nn.Module):
    """Replacement for a float32 `Linear`.

    weight: (N, K) float32. bias: (N,) float32 or None. coder: quantizes the input.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, coder: RowCoder) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._coder = coder
        # A meta tensor, for model code that reads the dtype.
        self.weight = torch.empty(weight.shape, device="meta")
        self._bias = torch.zeros(len(weight)) if bias is None else bias.detach().clone()
        weight = weight.detach()
        rounded = round_weight(weight if coder.smoothing is None else weight * coder.smoothing)
        self._product = Product(rounded)
        # A row is `low + step * codes`: `low` is multiplied by the sum of a channel's weights.
        self._sums = rounded.codes.sum(dim=1) * rounded.scales  # (N,) float32

    def forward(self, read: Tensor) -> Tensor:
        """Return (…, N) float32. read: (…, K) float32."""
        rows = self._coder.code(read)
        out = self._product(rows.codes)  # (T, N)
        torch.addcmul(self._bias, out, rows.step, out=out)
        out.addcmul_(rows.low, self._sums)
        return out.view(*read.shape[:-1], self.out_features)


class RoundedWeight(NamedTuple):
    """`scales[:, None] * codes` is the weight, rounded."""

    codes: Tensor  # (N, K) int8
    scales: Tensor  # (N,) float32


def round_weight(weight: Tensor) -> RoundedWeight:
    """Quantize (N, K) float32, as finely as this processor multiplies exactly."""
    largest = _largest_pair_sums(weight) if product_saturates() else weight.abs().amax(dim=1)
    scales = largest.clamp(min=torch.finfo(torch.float32).tiny * 1000) / _MAX_WEIGHT
    codes = (weight / scales[:, None]).round().clamp(-_MAX_WEIGHT, _MAX_WEIGHT).to(torch.int8)
    return RoundedWeight(codes, scales)


def _largest_pair_sums(weight: Tensor) -> Tensor:
    """Return (N,): for each channel the largest sum of two adjacent weights of the same sign.

    A processor without VNNI adds the products of two adjacent inputs in 16 bits, up to 32 767. With codes up
    to 255, two weights of the same sign may add up to 128, rounding included. That costs half a bit; the
    usual limit of 64 for every weight costs a whole one.
    """
    even = nn.functional.pad(weight, (0, weight.shape[1] % 2))
    pairs = even.view(len(even), -1, 2)  # (N, K / 2, 2)
    sums = torch.stack([pairs.clamp(min=0).sum(dim=2), pairs.clamp(max=0).sum(dim=2).neg()])
    return sums.amax(dim=(0, 2))


class Product:
    """Multiply codes by a rounded weight, with oneDNN."""

    def __init__(self, weight: RoundedWeight) -> None:
        self._packed = torch.ops.onednn.qlinear_prepack(weight.codes, None)
        self._scales = weight.scales
        self._zero_points = torch.zeros(len(weight.scales), dtype=torch.int32)

    def __call__(self, codes: Tensor) -> Tensor:
        """Return (T, N) float32. codes: (T, K) uint8."""
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            codes,
            1.0,  # scale and zero point of the codes
            0,
            self._packed,
            self._scales,
            self._zero_points,
            None,  # no bias
            1.0,  # scale and zero point of the result
            0,
            torch.float32,
            "none",  # no operator follows
            [],
            "",
        )
        return product


@functools.cache
def product_saturates() -> bool:
    """Return whether the product of two large weights and two large codes overflows on this processor.

    Measured, since torch does not report which instructions oneDNN chooses.
    """
    weight = RoundedWeight(torch.full((64, 256), _MAX_WEIGHT, dtype=torch.int8), torch.ones(64))
    codes = torch.full((64, 256), _MAX_CODE, dtype=torch.uint8)
    return bool((Product(weight)(codes) != 256 * _MAX_WEIGHT * _MAX_CODE).any())
