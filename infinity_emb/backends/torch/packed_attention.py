"""Attention over concatenated sequences without padding.

Two kernels are registered with transformers' `AttentionInterface`: `varlen` is torch's flash kernel for CUDA
in half precision; `grouped` runs `scaled_dot_product_attention` once per run of sequences of equal length, on
every device and dtype. Both take the sequences in ascending order of length and their layout as the keyword
argument `packed_layout` of the model's forward, or a padded batch with a `key_mask`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from infinity_emb.backends.torch.attention_runs import (
    Heads,
    attend_as_operator,
    join_runs,
    make_band_mask,
    split_into_runs,
)
from infinity_emb.backends.torch.packed_layout import PackedLayout, PooledRows

GROUPED = "infinity_grouped"
VARLEN = "infinity_varlen"
# Arguments that change attention and that these kernels do not support.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "output_attentions")


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
    """Attend within each sequence, with torch's own kernel.

    query: (1, H, T, D); key, value: (1, H_kv, T, D), H a multiple of H_kv. Returns (1, T, H, D).
    sliding_window: a token attends to those closer than this, |i - j| < sliding_window.
    key_mask: for a padded batch instead of packed sequences: (B, S), 1 for tokens to attend to.
    Raises NotImplementedError for attention with a soft cap, sinks or a position bias.
    """
    _check_supported(kwargs)
    is_causal = _is_causal(module, kwargs)
    heads = Heads(query, key, value)
    if packed_layout is None:
        mask = _make_padded_mask(query, attention_mask, key_mask, sliding_window, is_causal=is_causal)
        is_shared = query.shape[1] != key.shape[1]
        attended = scaled_dot_product_attention(
            *heads, attn_mask=mask, scale=scaling, enable_gqa=is_shared
        )  # (B, H, S, D)
        return attended.transpose(1, 2), None
    _check_pooled(heads, packed_layout)
    is_pooled = _is_pooled(packed_layout)
    if is_pooled:
        heads = _take_full_keys(query, packed_layout, sliding_window, is_causal=is_causal)
    if torch.compiler.is_compiling():
        starts = packed_layout.cu_seq_lens
        return attend_as_operator(*heads, starts, scaling, sliding_window, is_causal, is_pooled), None
    parts = []
    for run_heads, options in split_into_runs(
        heads, packed_layout.runs, scaling, sliding_window, is_causal=is_causal, is_pooled=is_pooled
    ):
        parts.append(scaled_dot_product_attention(*run_heads, **options))
    return join_runs(parts), None


def varlen_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: PackedLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute the same as `grouped_attention` in one kernel, for CUDA in float16 or bfloat16.

    Also raises NotImplementedError if torch's kernel takes no window and no scale (before torch 2.11).
    """
    from torch.nn.attention.varlen import varlen_attn

    if packed_layout is None:
        return grouped_attention(module, query, key, value, attention_mask, **kwargs)
    _check_supported(kwargs)
    if not _accepts(varlen_attn, "window_size", "scale"):
        raise NotImplementedError(
            f"varlen_attn of torch {torch.__version__} takes no window; 2.11 or newer does"
        )
    heads, starts, longest = Heads(query, key, value), packed_layout.cu_seq_lens, packed_layout.max_length
    _check_pooled(heads, packed_layout)
    if packed_layout.pooled is not None and _is_pooled(packed_layout):
        window, is_causal = kwargs.get("sliding_window"), _is_causal(module, kwargs)
        heads = _take_full_keys(query, packed_layout, window, is_causal=is_causal)
        starts, longest = packed_layout.pooled.starts, 1
    heads, options = _share_heads(heads, has_option=_accepts(varlen_attn, "enable_gqa"))
    query, key, value = (states[0].transpose(0, 1) for states in heads)  # (T, H, D) each
    outputs = varlen_attn(
        query,
        key,
        value,
        starts,
        packed_layout.cu_seq_lens,
        longest,
        packed_layout.max_length,
        scale=kwargs.get("scaling"),
        window_size=_get_window(kwargs.get("sliding_window"), is_causal=_is_causal(module, kwargs)),
        **options,
    )
    assert isinstance(outputs, Tensor)  # a tuple only if auxiliary outputs are requested
    return outputs.unsqueeze(0), None


def _is_pooled(layout: PackedLayout) -> bool:
    """Return whether there are queries for the pooled tokens only, as in the last layer."""
    pooled = layout.pooled
    return pooled is not None and pooled.key is not None and not pooled.is_checked


def _check_pooled(heads: Heads, layout: PackedLayout) -> None:
    """Compare the layer's keys and values with those that are to replace them, if the layout asks for it.

    Raises NotImplementedError if they differ by more than rounding.
    """
    if layout.pooled is None or not layout.pooled.is_checked:
        return
    states = _view_states(layout.pooled, heads.query.shape[-1])
    for expected, found in zip(heads[1:], states, strict=True):
        tolerance = 8 * torch.finfo(expected.dtype).eps * expected.abs().max()
        if found.shape != expected.shape or (found - expected).abs().max() > tolerance:
            raise NotImplementedError("the last layer computes other keys or values")


def _take_full_keys(
    query: Tensor, layout: PackedLayout, sliding_window: int | None, *, is_causal: bool
) -> Heads:
    """Return the queries (1, H, B, D) with the keys and values of all tokens, (1, H_kv, T, D).

    Raises NotImplementedError if tokens attend to only a part of their sequence and are not its last ones.
    """
    assert layout.pooled is not None
    if (is_causal or sliding_window is not None) and not layout.pooled.are_last:
        raise NotImplementedError("with causal or local attention, only last tokens can be pooled")
    return Heads(query, *_view_states(layout.pooled, query.shape[-1]))


def _view_states(pooled: PooledRows, head_dim: int) -> list[Tensor]:
    """Return the keys and values of all tokens, (1, H_kv, T, D)."""
    states = (pooled.key, pooled.value)
    return [each.view(1, each.shape[1], -1, head_dim).transpose(1, 2) for each in states if each is not None]


def _get_window(sliding_window: int | None, *, is_causal: bool) -> tuple[int, int]:
    """Return the window as torch takes it: the number of neighbours on either side."""
    reach = -1 if sliding_window is None else sliding_window - 1
    return (reach, 0) if is_causal else (reach, reach)


def _share_heads(heads: Heads, *, has_option: bool) -> tuple[Heads, dict[str, Any]]:
    """Let query heads share key and value heads, by the kernel's option or by copies (torch 2.11)."""
    num_sharing = heads.query.shape[1] // heads.key.shape[1]
    if num_sharing == 1:
        return heads, {}
    if has_option:
        return heads, {"enable_gqa": True}
    key, value = (states.repeat_interleave(num_sharing, dim=1) for states in heads[1:])
    return Heads(heads.query, key, value), {}


def register() -> None:
    """Register both kernels with transformers; may be called repeatedly.

    They have no mask function, so that transformers builds no mask. With one, even one that returns None, its
    decoders read from the device whether the input is packed, and so wait for all earlier batches.
    """
    for name, function in ((GROUPED, grouped_attention), (VARLEN, varlen_attention)):
        AttentionInterface.register(name, function)


@functools.cache
def _list_parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _has_parameters(function: Callable[..., Any], *names: str) -> bool:
    return _list_parameters(function).issuperset(names)


_assume_constant: Any = torch.compiler.assume_constant_result  # it has no annotations
# torch.compile would look into a cached function, with a warning, and cannot search a set that is a constant.
_accepts: Callable[..., bool] = _assume_constant(_has_parameters)


def _make_padded_mask(
    query: Tensor,
    attention_mask: Tensor | None,
    key_mask: Tensor | None,
    sliding_window: int | None,
    *,
    is_causal: bool,
) -> Tensor | None:
    """Return (B, 1, S, S) bool, or the mask of transformers if there is no key mask."""
    length = query.shape[2]
    if key_mask is None:
        return attention_mask
    band = make_band_mask(length, sliding_window or (length + 1), is_causal=is_causal, device=query.device)
    if band is None and is_causal:
        band = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    mask = key_mask.bool()[:, None, None, :]  # (B, 1, 1, S)
    # The output of a token that attends to none, such as padding on the left, is 0 (torch 2.5 and newer).
    return mask.expand(-1, 1, length, -1) if band is None else mask & band


def _is_causal(module: torch.nn.Module, kwargs: dict[str, Any]) -> bool:
    is_causal = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)


def _check_supported(kwargs: dict[str, Any]) -> None:
    present = [name for name in _UNSUPPORTED if kwargs.get(name) not in (None, False)]
    if present:
        raise NotImplementedError(f"packed attention does not support {', '.join(present)}")
