"""Attention over one flat row of sequences, so that nothing is padded.

Two kernels, registered with transformers' `AttentionInterface` under the names below: `varlen` is torch's
flash kernel for CUDA in half precision; `grouped` runs `scaled_dot_product_attention` once per run of
sequences of equal length, on every device and dtype. Both need the sequences in ascending order of
length, and their layout as the keyword argument `packed_layout` of the model's forward. Both also take padded
batches, with a `key_mask`.
Knows nothing of sentence-transformers or of batches beyond that.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

GROUPED = "infinity_grouped"
VARLEN = "infinity_varlen"
# Arguments that change what attention means and that these kernels do not know.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "output_attentions")


class Run(NamedTuple):
    """Neighbouring sequences of one length."""

    start: int  # first token in the flat row
    length: int  # tokens of each sequence
    num_sequences: int


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Where the sequences of a flat row begin and end."""

    runs: list[Run]
    cu_seq_lens: Tensor  # (B + 1,) int32, on the model's device
    max_length: int


def runs_of_equal_length(lengths: list[int]) -> list[Run]:
    """Runs of neighbours of equal length, in order."""
    runs: list[Run] = []
    start = 0
    for length, same in itertools.groupby(lengths):
        runs.append(Run(start, length, num_sequences=len(list(same))))
        start += length * runs[-1].num_sequences
    return runs


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: PackedLayout | None = None,
    key_mask: Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention per sequence with torch's own kernel.

    query: (1, H, T, D); key, value: (1, H_kv, T, D), H a multiple of H_kv. Returns (1, T, H, D).
    sliding_window: a token sees those less than this far away, |i - j| < sliding_window.
    key_mask: for a padded batch instead of a packed row: (B, S), 1 for tokens that may be looked at.
    Raises NotImplementedError for attention with a soft cap, sinks or a position bias.
    """
    _check_supported(kwargs)
    is_causal = _is_causal(module, kwargs)
    if packed_layout is None:
        mask = _padded_mask(query, attention_mask, key_mask, sliding_window, is_causal=is_causal)
        return _attend(query, key, value, mask, scaling).transpose(1, 2), None
    parts = []
    for run in packed_layout.runs:
        mask = _band_mask(run.length, sliding_window, is_causal=is_causal, device=query.device)
        attended = _attend(
            _sequences(query, run),  # (num_sequences, H, length, D)
            _sequences(key, run),
            _sequences(value, run),
            mask,
            scaling,
            is_causal=is_causal and mask is None and run.length > 1,
        )
        parts.append(attended.transpose(1, 2).reshape(-1, query.shape[1], value.shape[-1]))
    rows = parts[0] if len(parts) == 1 else torch.cat(parts)  # (T, H, D)
    return rows.unsqueeze(0), None


def varlen_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: PackedLayout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The same as `grouped_attention` in one kernel, for CUDA in float16 or bfloat16.

    Raises NotImplementedError also where torch's kernel takes no window and no scale (before torch 2.11).
    """
    from torch.nn.attention.varlen import varlen_attn

    if packed_layout is None:
        return grouped_attention(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            sliding_window=sliding_window,
            **kwargs,
        )
    _check_supported(kwargs)
    known = _parameters(varlen_attn)
    if not {"window_size", "scale"} <= known:
        raise NotImplementedError(
            f"varlen_attn of torch {torch.__version__} takes no window; 2.11 or newer does"
        )
    reach = -1 if sliding_window is None else sliding_window - 1  # torch counts the neighbours on one side
    window = (reach, 0) if _is_causal(module, kwargs) else (reach, reach)
    num_sharing = query.shape[1] // key.shape[1]  # query heads that share one head of keys and values
    sharing: dict[str, Any] = {}
    if num_sharing > 1 and "enable_gqa" in known:
        sharing = {"enable_gqa": True}
    elif num_sharing > 1:  # torch 2.11
        key, value = (states.repeat_interleave(num_sharing, dim=1) for states in (key, value))
    rows = varlen_attn(
        query[0].transpose(0, 1),  # (T, H, D)
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        packed_layout.cu_seq_lens,
        packed_layout.cu_seq_lens,
        packed_layout.max_length,
        packed_layout.max_length,
        scale=scaling,
        window_size=window,
        **sharing,
    )
    assert isinstance(rows, Tensor)  # a tuple only where auxiliary outputs are asked for
    return rows.unsqueeze(0), None


def register() -> None:
    """Make both kernels known to transformers. Harmless when repeated.

    No mask function goes with them: without one transformers builds no mask and leaves at once, while with
    one, even one that answers None, its decoders first ask the device whether the input is packed, and so
    wait for all batches before this one.
    """
    for name, function in ((GROUPED, grouped_attention), (VARLEN, varlen_attention)):
        AttentionInterface.register(name, function)


@functools.cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    *,
    is_causal: bool = False,
) -> Tensor:
    """(B, H, S, D), attention within each of B sequences of equal length."""
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=is_causal,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _padded_mask(
    query: Tensor,
    attention_mask: Tensor | None,
    key_mask: Tensor | None,
    sliding_window: int | None,
    *,
    is_causal: bool,
) -> Tensor | None:
    """(B, 1, S, S) bool, or what transformers made itself where no key mask came along."""
    length = query.shape[2]
    if key_mask is None:
        return attention_mask
    band = _band_mask(length, sliding_window or (length + 1), is_causal=is_causal, device=query.device)
    if band is None and is_causal:
        band = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    mask = key_mask.bool()[:, None, None, :]  # (B, 1, 1, S)
    # A row that sees nothing, such as padding before a text, comes out as 0 (torch 2.5 and newer).
    return mask.expand(-1, 1, length, -1) if band is None else mask & band


def _sequences(states: Tensor, run: Run) -> Tensor:
    """(1, H, T, D) → the run's sequences as a view, (num_sequences, H, length, D)."""
    num_heads, head_dim = states.shape[1], states.shape[3]
    rows = states[0, :, run.start : run.start + run.length * run.num_sequences]
    return rows.view(num_heads, run.num_sequences, run.length, head_dim).transpose(0, 1)


def _is_causal(module: torch.nn.Module, kwargs: dict[str, Any]) -> bool:
    given = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", False) if given is None else given)


def _band_mask(
    length: int, sliding_window: int | None, *, is_causal: bool, device: torch.device
) -> Tensor | None:
    """(length, length) bool, true where a token may look; None where a plain kernel does the same."""
    if sliding_window is None or length <= sliding_window:
        return None
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    is_near = distance.abs() < sliding_window
    return is_near & (distance >= 0) if is_causal else is_near


def _check_supported(kwargs: dict[str, Any]) -> None:
    present = [name for name in _UNSUPPORTED if kwargs.get(name) not in (None, False)]
    if present:
        raise NotImplementedError(f"packed attention does not know {', '.join(present)}")
