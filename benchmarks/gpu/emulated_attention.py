"""Compute torch's `varlen_attn` on the host, with the demands of the kernel for CUDA.

Written from the definition, one sequence after the other with an explicit mask: not from our own kernels,
which are compared with it.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_MAX_HEAD_DIM = 256


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    key_starts: Tensor,
    max_query: int,
    max_key: int,
    is_causal: bool = False,
    scale: float | None = None,
    window: list[int] | None = None,
    enable_gqa: bool = False,
    *unsupported: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (T, H, D), and two tensors that `varlen_attn` drops; the arguments are those of its operator.

    query: (T, H, D); key, value: (T, H_kv, D). starts: (B + 1,) int32. window: neighbours on the left and on
    the right, -1 for all. Raises RuntimeError for arguments that the kernel refuses. On the meta device, and
    while torch.compile traces, only shapes are computed.
    """
    assert not any(each is not None for each in unsupported), unsupported
    _check_heads(query, key, value, enable_gqa=enable_gqa)
    dropped = query.new_empty((query.shape[1], query.shape[0]), dtype=torch.float32), query.new_empty(2)
    if query.device.type == "meta" or isinstance(query, FakeTensor):
        return torch.empty_like(query), *dropped
    _check_starts(starts, query.shape[0], max_query)
    _check_starts(key_starts, key.shape[0], max_key)
    scale = query.shape[2] ** -0.5 if scale is None else scale
    left, right = window or (-1, -1)
    parts = []
    if len(starts) != len(key_starts):
        raise RuntimeError(f"{len(starts) - 1} sequences of queries cannot attend to {len(key_starts) - 1}")
    for (start, end), (first, last) in zip(
        itertools.pairwise(starts.tolist()), itertools.pairwise(key_starts.tolist()), strict=True
    ):
        allowed = _make_mask(end - start, last - first, left, 0 if is_causal else right)
        parts.append(_attend_one(query[start:end], key[first:last], value[first:last], allowed, scale))
    return torch.cat(parts).to(query.dtype), *dropped


def _attend_one(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, scale: float) -> Tensor:
    num_sharing = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(num_sharing, dim=1).float() for states in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.float(), key) * scale
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, value)


def _make_mask(num_queries: int, num_keys: int, left: int, right: int) -> Tensor:
    """Return (num_queries, num_keys) bool, true where a token attends; the last query is at the last key."""
    position = torch.arange(num_queries) + num_keys - num_queries
    offset = torch.arange(num_keys)[None, :] - position[:, None]  # of the key from the query
    is_within = torch.ones(num_queries, num_keys, dtype=torch.bool)
    if left >= 0:
        is_within &= offset >= -left
    if right >= 0:
        is_within &= offset <= right
    return is_within


def _check_heads(query: Tensor, key: Tensor, value: Tensor, *, enable_gqa: bool) -> None:
    for states in (query, key, value):
        if states.dtype not in (torch.float16, torch.bfloat16):
            raise RuntimeError(f"the flash kernel takes float16 and bfloat16, and this is {states.dtype}")
        if states.dtype != query.dtype:
            raise RuntimeError(f"query is {query.dtype}, and key or value {states.dtype}")
        if states.dim() != 3 or states.shape[2] != query.shape[2]:
            raise RuntimeError(f"query is {tuple(query.shape)}, and key or value {tuple(states.shape)}")
        if states.stride(-1) != 1:
            raise RuntimeError("the last dimension must be contiguous")
    if query.shape[2] % 8 or query.shape[2] > _MAX_HEAD_DIM:
        raise RuntimeError(f"the head size is {query.shape[2]}, not a multiple of 8 up to {_MAX_HEAD_DIM}")
    if query.shape[1] % key.shape[1] or key.shape != value.shape:
        raise RuntimeError(f"{query.shape[1]} query heads cannot share {key.shape[1]}")
    if query.shape[1] != key.shape[1] and not enable_gqa:
        raise RuntimeError("query heads share key heads without enable_gqa")


def _check_starts(starts: Tensor, num_tokens: int, max_length: int) -> None:
    if starts.dtype != torch.int32:
        raise RuntimeError(f"cu_seq must be int32; it is {starts.dtype}")
    lengths = starts.diff()
    if int(starts[0]) != 0 or int(starts[-1]) != num_tokens or int(lengths.min()) < 0:
        raise RuntimeError(f"cu_seq {starts.tolist()} does not cover {num_tokens} tokens")
    if int(lengths.max()) > max_length:
        raise RuntimeError(f"{int(lengths.max())} tokens in a sequence, the longest is to have {max_length}")
