"""Attend within packed sequences, once per run of sequences of equal length.

torch.compile cannot trace a loop whose length depends on the batch, so to it the loop is one operator.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from infinity_emb.backends.torch.packed_layout import Run, find_equal_runs

_NO_WINDOW = -1
_LIBRARY = torch.library.Library("infinity_emb", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "attend(Tensor query, Tensor key, Tensor value, Tensor starts, float? scaling, int window,"
    " bool is_causal, bool is_pooled) -> Tensor"
)


class Heads(NamedTuple):
    """Query (B, H, S, D), and key and value (B, H_kv, S, D); H is a multiple of H_kv."""

    query: Tensor
    key: Tensor
    value: Tensor


def attend_in_runs(
    heads: Heads, runs: list[Run], scaling: float | None, sliding_window: int | None, *, is_causal: bool
) -> Tensor:
    """Return (1, T, H, D) for (1, H, T, D) queries and (1, H_kv, T, D) keys and values."""
    num_heads, head_dim = heads.query.shape[1], heads.value.shape[-1]
    is_shared = num_heads != heads.key.shape[1]
    parts = []
    for run in runs:
        mask = make_band_mask(run.length, sliding_window, is_causal=is_causal, device=heads.query.device)
        queries, keys, values = (_view_sequences(states, run) for states in heads)
        attended = scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            is_causal=is_causal and mask is None and run.length > 1,
            scale=scaling,
            enable_gqa=is_shared,
        )  # (num_sequences, H, length, D)
        parts.append(attended.transpose(1, 2).reshape(-1, num_heads, head_dim))
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).unsqueeze(0)


def attend_from_pooled(
    heads: Heads, runs: list[Run], scaling: float | None, sliding_window: int | None, *, is_causal: bool
) -> Tensor:
    """Return (1, B, H, D) for one query per sequence, which attends to all tokens of its sequence."""
    is_shared = heads.query.shape[1] != heads.key.shape[1]
    parts, first = [], 0
    for run in runs:
        attended = scaled_dot_product_attention(
            _view_sequences(heads.query, Run(first, 1, run.num_sequences)),
            _view_sequences(heads.key, run),
            _view_sequences(heads.value, run),
            scale=scaling,
            enable_gqa=is_shared,
        )  # (num_sequences, H, 1, D)
        parts.append(attended[:, :, 0])
        first += run.num_sequences
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).unsqueeze(0)


def attend_as_operator(
    heads: Heads,
    starts: Tensor,
    scaling: float | None,
    sliding_window: int | None,
    *,
    is_causal: bool,
    is_pooled: bool,
) -> Tensor:
    """Return the same as the functions above, in a form that torch.compile does not look into.

    starts: (B + 1,) int32, where each sequence starts.
    """
    window = _NO_WINDOW if sliding_window is None else sliding_window
    attended: Tensor = torch.ops.infinity_emb.attend(*heads, starts, scaling, window, is_causal, is_pooled)
    return attended


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    scaling: float | None,
    window: int,
    is_causal: bool,
    is_pooled: bool,
) -> Tensor:
    runs = find_equal_runs([end - start for start, end in itertools.pairwise(starts.tolist())])
    attend = attend_from_pooled if is_pooled else attend_in_runs
    sliding_window = None if window == _NO_WINDOW else window
    return attend(Heads(query, key, value), runs, scaling, sliding_window, is_causal=is_causal)


def _describe_output(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    """Return an empty tensor of the shape that `_attend` returns."""
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


_LIBRARY.impl("attend", _attend, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("infinity_emb::attend", _describe_output, lib=_LIBRARY)


def _view_sequences(states: Tensor, run: Run) -> Tensor:
    """Return the run's sequences of (1, H, T, D) as a view, (num_sequences, H, length, D)."""
    num_heads, head_dim = states.shape[1], states.shape[3]
    sequences = states[0, :, run.start : run.start + run.length * run.num_sequences]
    return sequences.view(num_heads, run.num_sequences, run.length, head_dim).transpose(0, 1)


def make_band_mask(
    length: int, sliding_window: int | None, *, is_causal: bool, device: torch.device
) -> Tensor | None:
    """Return (length, length) bool, true where a token attends; None if no mask is needed."""
    if sliding_window is None or length <= sliding_window:
        return None
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    is_near = distance.abs() < sliding_window
    return is_near & (distance >= 0) if is_causal else is_near
