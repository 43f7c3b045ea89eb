"""Compare what the device computes with what the CPU computes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import Tensor

from benchmarks.gpu import models
from benchmarks.gpu.models import compute_row, copy_to_device, draw_sequences, to_batch
from benchmarks.gpu.shapes import Plan, Shape
from infinity_emb.backends.torch import packed_attention
from infinity_emb.backends.torch.packed_layout import PackedLayout, find_equal_runs
from infinity_emb.items import Float32Array, TokenIds

# Limits of the checks. A kernel alone: norm of the difference over norm of the reference; bfloat16 rounds
# values and probabilities to 8 bits (a few 1e-3), TF32 would show as 3e-4, a window that is off by one as
# 1e-1. A whole model: cosine and largest difference of unit vectors; of scores, the largest difference as a
# part of how far they are apart.
KERNEL_LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
# Measured on a CPU, bfloat16: 0.9998 and 3e-3, while texts differ by 6e-2 and more.
COSINE_LIMITS = {torch.float32: 0.999_99, torch.bfloat16: 0.999}
DIFFERENCE_LIMITS = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
SCORE_LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Hold the result of one comparison of the device with the CPU."""

    name: str
    is_passed: bool
    detail: str


def list_kernels(device: torch.device) -> list[tuple[str, torch.dtype]]:
    """List the attention kernels that are served on a device, each with the dtype that selects it."""
    grouped = [(packed_attention.GROUPED, torch.float32)]
    return [(packed_attention.VARLEN, torch.bfloat16), *grouped] if device.type == "cuda" else grouped


def check_kernel(kernel: str, device: torch.device, dtype: torch.dtype) -> Check:
    """Compare every kind of attention with its definition, computed in float64 on the CPU."""
    function = {
        packed_attention.GROUPED: packed_attention.grouped_attention,
        packed_attention.VARLEN: packed_attention.varlen_attention,
    }[kernel]
    name, limit = f"{kernel} {name_dtype(dtype)} alone", KERNEL_LIMITS[dtype]
    worst = 0.0
    for num_kv_heads, is_causal, window in itertools.product((8, 2), (False, True), (None, 1, 16)):
        case = f"{num_kv_heads} key heads for 8, causal={is_causal}, window={window}"
        try:
            error = _kernel_error(function, device, dtype, num_kv_heads, is_causal, window)
        except (RuntimeError, TypeError, ValueError) as exc:  # a failed check, so that the others still run
            return Check(name=name, is_passed=False, detail=f"{case}: {type(exc).__name__}: {exc}")
        if not error <= limit:  # NaN too
            return Check(name=name, is_passed=False, detail=f"{case}: error {error:.1e} over {limit:.0e}")
        worst = max(worst, error)
    return Check(name=name, is_passed=True, detail=f"relative error at most {worst:.1e} (limit {limit:.0e})")


def _kernel_error(
    function: Callable[..., tuple[Tensor, None]],
    device: torch.device,
    dtype: torch.dtype,
    num_kv_heads: int,
    is_causal: bool,
    window: int | None,
) -> float:
    lengths = [1, 7, 7, 16, 17, 64, 200]
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, sum(lengths), 64, generator=generator).to(dtype)
        for heads in (8, num_kv_heads, num_kv_heads)
    )
    starts = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    layout = PackedLayout(find_equal_runs(lengths), starts.to(device), max(lengths))
    rows, _ = function(
        torch.nn.Module(),
        query.to(device),
        key.to(device),
        value.to(device),
        None,
        packed_layout=layout,
        scaling=0.2,
        sliding_window=window,
        is_causal=is_causal,
    )
    expected = attention_by_definition(
        query.double(), key.double(), value.double(), lengths, scaling=0.2, window=window, is_causal=is_causal
    )
    return float((rows.cpu().double() - expected).norm() / expected.norm())


def attention_by_definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    *,
    scaling: float,
    window: int | None,
    is_causal: bool,
) -> Tensor:
    """Compute softmax over one dense matrix of all tokens, minus infinity where a token is masked.

    query: (1, H, T, D); key, value: (1, H_kv, T, D). A token attends to those of its sequence less
    than `window` away and, if causal, to none after itself. Returns (1, T, H, D).
    """
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    position = torch.cat([torch.arange(length) for length in lengths])
    distance = position[:, None] - position[None, :]  # (T, T)
    may_look = sequence[:, None] == sequence[None, :]
    if window is not None:
        may_look &= distance.abs() < window
    if is_causal:
        may_look &= distance >= 0
    num_sharing = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(num_sharing, dim=1) for states in (key, value))
    scores = (query @ key.transpose(2, 3)) * scaling  # (1, H, T, T)
    weights = scores.masked_fill(~may_look, -math.inf).softmax(-1)
    return (weights @ value).transpose(1, 2)


def check_model(
    name: str,
    model: SentenceTransformer,
    sequences: list[TokenIds],
    expected: Float32Array,
    kernel: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Check:
    """Compare a packed batch on the device with rows that were computed on the CPU."""
    backend, attention = models.make_backend(copy_to_device(model, device, dtype))
    return _compare_vectors(
        f"{name} {name_dtype(dtype)}",
        models.compute_rows(backend, to_batch(sequences)),
        expected,
        dtype,
        attention,
        kernel,
    )


def check_full_precision(
    name: str,
    model: SentenceTransformer,
    sequences: list[TokenIds],
    expected: Float32Array,
    device: torch.device,
) -> Check:
    """Check that a bfloat16 model computes exactly when float32 is requested, as after a NaN."""
    backend, attention = models.make_backend(copy_to_device(model, device, torch.bfloat16))
    rows = models.compute_rows(backend, to_batch(sequences), full_precision=True)
    return _compare_vectors(f"{name} float32 on demand", rows, expected, torch.float32, attention, "")


def _compare_vectors(
    name: str, rows: Float32Array, expected: Float32Array, dtype: torch.dtype, attention: str, kernel: str
) -> Check:
    cosine = float(((rows * expected).sum(1) / np.linalg.norm(rows, axis=1)).min())
    difference = float(np.abs(rows - expected).max())
    unlike = float(np.abs(expected - expected[0]).max())  # identical vectors would prove nothing
    is_close = cosine >= COSINE_LIMITS[dtype] and difference <= DIFFERENCE_LIMITS[dtype] < unlike / 3
    return _make_check(
        name,
        is_close,
        f"cosine >= {cosine:.6f} (limit {COSINE_LIMITS[dtype]}), difference <= {difference:.1e} (limit"
        f" {DIFFERENCE_LIMITS[dtype]:.1e}; texts differ by {unlike:.1e}); {attention}",
        f"packed: {kernel}",
    )


def check_scorer(
    shape: Shape, scorer: CrossEncoder, kernel: str, device: torch.device, dtype: torch.dtype, plan: Plan
) -> Check:
    """Compare scores of a packed batch on the device with those of single texts on the CPU."""
    sequences = draw_sequences(plan.checked_lengths)
    expected = np.concatenate([compute_row(scorer, sequence, "scores") for sequence in sequences])  # (B, 1)
    backend, attention = models.make_backend(copy_to_device(scorer, device, dtype))
    apart = float(np.ptp(expected))  # identical scores would prove nothing
    difference = float(np.abs(models.compute_rows(backend, to_batch(sequences)) - expected).max() / apart)
    return _make_check(
        f"{shape.name} {name_dtype(dtype)}",
        difference <= SCORE_LIMITS[dtype],
        f"difference <= {difference:.1e} of {apart:.1e} (limit {SCORE_LIMITS[dtype]:.1e}); {attention}",
        f"packed: {kernel}, {shape.name.partition('-')[0]} rows to the head",
    )


def _make_check(name: str, is_close: bool, detail: str, expected_attention: str) -> Check:
    """Pass only if the model is packed as expected: padded, it would be right and slow."""
    is_expected = expected_attention in detail
    ending = "" if is_expected else f"; EXPECTED {expected_attention}"
    return Check(name=name, is_passed=is_close and is_expected, detail=detail + ending)


def name_dtype(dtype: torch.dtype) -> str:
    """Return `float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")
