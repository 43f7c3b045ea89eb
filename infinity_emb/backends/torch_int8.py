"""Linear layers with int8 weights and uint8 activations for CPUs, around oneDNN's matrix product.

Each output channel of the weights has a scale of its own, and each row of activations its own lowest value
and step, so no row is touched by another one of its batch. The product is exact in integers; all that is lost
is lost in rounding. Knows nothing of models, nor of where smoothing factors come from (`torch_smoothing.py`).
"""

from __future__ import annotations

import functools
import threading
from typing import NamedTuple

import torch
from torch import Tensor, nn

_MAX_CODE = 255  # of activations: uint8
_MAX_WEIGHT = 127  # of weights, either way: int8
_SMALLEST_STEP = 1e-30  # of a row whose values are all the same
_MAX_KEPT_VALUES = 2**23


class CodedRows(NamedTuple):
    """Rows as codes: `low + step * codes` is what was read, smoothed and rounded."""

    codes: Tensor  # (T, K) uint8
    low: Tensor  # (T, 1) float32
    step: Tensor  # (T, 1) float32


class LastRows(threading.local):
    """What a thread coded last. Query, key and value read the same rows: only the first one codes them.

    Replicas on a CPU share the layers and compute in threads of their own, hence one for each thread. With it
    goes the memory to code in: fresh memory for each layer costs a fifth of all speed.
    """

    coder: RowCoder | None = None
    read: Tensor | None = None  # kept, so that no other tensor can take its identity
    coded: CodedRows | None = None

    def __init__(self) -> None:
        self._kept: dict[torch.dtype, Tensor] = {}

    def room(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Memory for so many values, the same at each call; a huge batch gets some of its own."""
        num_values = shape.numel()
        kept = self._kept.get(dtype)
        if kept is None or len(kept) < num_values:
            with torch.inference_mode(False):  # so that it can be written to inside and outside of that mode
                kept = torch.empty(num_values, dtype=dtype)
            if num_values <= _MAX_KEPT_VALUES:
                self._kept[dtype] = kept
        return kept[:num_values].view(shape)


class RowCoder:
    """Codes what one layer reads, or several that read the same.

    smoothing: (K,) float32 or None, what each input channel is divided by and its weights are multiplied by.
    last: shared by all coders of a model.
    """

    def __init__(self, smoothing: Tensor | None, last: LastRows) -> None:
        self.smoothing = smoothing
        self._factors = None if smoothing is None else smoothing.reciprocal()
        self._last = last

    def code(self, read: Tensor) -> CodedRows:
        """read: (…, K) float32, which nobody changes in place before all of its layers have read it."""
        last = self._last
        if last.read is not read or last.coder is not self or last.coded is None:
            rows = read.reshape(-1, read.shape[-1])  # (T, K)
            last.coder, last.read, last.coded = self, read, code_rows(rows, self._factors, last)
        return last.coded


def code_rows(rows: Tensor, factors: Tensor | None = None, memory: LastRows | None = None) -> CodedRows:
    """Rows of (T, K) float32, each with its own range; NaN and infinity come out of a product as NaN.

    factors: (K,) float32, that multiply the channels first.
    memory: to code in, which the next call writes over.
    """
    memory = memory or LastRows()
    own = memory.room(rows.shape, torch.float32)
    smooth = rows if factors is None else torch.mul(rows, factors, out=own)
    # amin and amax use vector instructions where aminmax does not: 30 times faster.
    low = smooth.amin(dim=1, keepdim=True)  # (T, 1)
    step = ((smooth.amax(dim=1, keepdim=True) - low) / _MAX_CODE).clamp_(min=_SMALLEST_STEP)
    # Half a step lower, so that cutting off what follows the point rounds.
    scaled = torch.sub(smooth, low - step / 2, out=own).mul_(step.reciprocal())
    # By way of int16: torch narrows float32 to that, and that to uint8, with vector instructions; float32 to
    # uint8 takes four times as long.
    cut = memory.room(rows.shape, torch.int16).copy_(scaled)
    codes = memory.room(rows.shape, torch.uint8).copy_(cut)
    return CodedRows(codes, low, step)


def rounding_error(rows: Tensor, weight: Tensor, smoothing: Tensor | None) -> float:
    """How much of a layer's answers rounding takes away, squared, as a part of them; the mean of the rows.

    rows: (T, K) float32. weight: (N, K) float32. smoothing: (K,) float32 or None.
    """
    factors = torch.ones(rows.shape[1]) if smoothing is None else smoothing
    coded, rounded = code_rows(rows, factors.reciprocal()), round_weight(weight * factors)
    exact = rows @ weight.T
    found = (coded.low + coded.step * coded.codes) @ (rounded.scales[:, None] * rounded.codes).T
    return float(((found - exact).square().sum(dim=1) / exact.square().sum(dim=1)).nanmean())


class Int8Linear(nn.Module):
    """Stands where a float32 `Linear` stood.

    weight: (N, K) float32. bias: (N,) float32 or None. coder: of what the layer reads.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, coder: RowCoder) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._coder = coder
        # Without numbers in it: the code of some models asks for its number format.
        self.weight = torch.empty(weight.shape, device="meta")
        self._bias = torch.zeros(len(weight)) if bias is None else bias.detach().clone()
        weight = weight.detach()
        rounded = round_weight(weight if coder.smoothing is None else weight * coder.smoothing)
        self._product = Product(rounded)
        # A row is `low + step * codes`: its low part meets every weight of a channel.
        self._sums = rounded.codes.sum(dim=1) * rounded.scales  # (N,) float32

    def forward(self, read: Tensor) -> Tensor:
        """read: (…, K) float32. Returns (…, N) float32."""
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
    """weight: (N, K) float32. As fine as this processor multiplies exactly."""
    largest = _largest_pair_sums(weight) if product_saturates() else weight.abs().amax(dim=1)
    scales = largest.clamp(min=torch.finfo(torch.float32).tiny * 1000) / _MAX_WEIGHT
    codes = (weight / scales[:, None]).round().clamp(-_MAX_WEIGHT, _MAX_WEIGHT).to(torch.int8)
    return RoundedWeight(codes, scales)


def _largest_pair_sums(weight: Tensor) -> Tensor:
    """(N,): the largest of each channel's sums of two neighbours' weights of one sign.

    A processor without VNNI adds the products of two neighbouring inputs in 16 bits, which hold 32 767. With
    codes up to 255 two weights of one sign may be 128 together, rounding included. That costs half a bit;
    keeping every weight below 64, the usual cure, costs a whole one.
    """
    even = nn.functional.pad(weight, (0, weight.shape[1] % 2))
    pairs = even.view(len(even), -1, 2)  # (N, K / 2, 2)
    sums = torch.stack([pairs.clamp(min=0).sum(dim=2), pairs.clamp(max=0).sum(dim=2).neg()])
    return sums.amax(dim=(0, 2))


class Product:
    """Codes times a rounded weight, by oneDNN."""

    def __init__(self, weight: RoundedWeight) -> None:
        self._packed = torch.ops.onednn.qlinear_prepack(weight.codes, None)
        self._scales = weight.scales
        self._zero_points = torch.zeros(len(weight.scales), dtype=torch.int32)

    def __call__(self, codes: Tensor) -> Tensor:
        """codes: (T, K) uint8. Returns (T, N) float32."""
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
            "none",  # nothing more is done to it
            [],
            "",
        )
        return product


@functools.cache
def product_saturates() -> bool:
    """Whether this processor's product is wrong where two large weights meet two large codes.

    Tried, not read off its flags: oneDNN chooses among instructions that torch does not report.
    """
    weight = RoundedWeight(torch.full((64, 256), _MAX_WEIGHT, dtype=torch.int8), torch.ones(64))
    codes = torch.full((64, 256), _MAX_CODE, dtype=torch.uint8)
    return bool((Product(weight)(codes) != 256 * _MAX_WEIGHT * _MAX_CODE).any())
