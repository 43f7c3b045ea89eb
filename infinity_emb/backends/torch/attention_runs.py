"""Attend within packed sequences, once per run of sequences of equal length.

torch.compile cannot trace a loop whose length depends on the batch, so to it the loop is one operator.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from infinity_emb.backends.torch.packed_layout import Run, find_equal_runs


class Heads(NamedTuple):
    """Query (B, H, S, D), and key and value (B, H_kv, S, D); H is a multiple of H_kv."""

    query: Tensor
    key: Tensor
    value: Tensor


def split_into_runs(
    heads: Heads,
    runs: list[Run],
    scaling: float | None,
    sliding_window: int | None,
    *,
    is_causal: bool,
    is_pooled: bool,
) -> Iterator[tuple[Heads, dict[str, Any]]]:
    """Yield the arguments of `scaled_dot_product_attention` for each run.

    heads: of one packed batch, B = 1; their sequences one after the other.
    is_pooled: there is one query per sequence; with a window or causal attention it is the last token's.
    """
    is_shared = heads.query.shape[1] != heads.key.shape[1]
    num_sequences = 0
    for run in runs:
        query_run = Run(num_sequences, 1, run.num_sequences) if is_pooled else run
        num_sequences += run.num_sequences
        query = _view_sequences(heads.query, query_run)
        key, value = (_view_sequences(states, run) for states in heads[1:])
        mask = None
        if not is_pooled:
            mask = make_band_mask(run.length, sliding_window, is_causal=is_causal, device=heads.query.device)
        elif sliding_window is not None:
            key, value = (states[:, :, -sliding_window:] for states in (key, value))
        yield (
            Heads(query, key, value),
            {
                "attn_mask": mask,
                "is_causal": is_causal and not is_pooled and mask is None and run.length > 1,
                "scale": scaling,
                "enable_gqa": is_shared,
            },
        )


def join_runs(attended: Sequence[Tensor]) -> Tensor:
    """Return (1, T, H, D) for the outputs of the runs, (num_sequences, H, length, D) each."""
    parts = [part.transpose(1, 2).flatten(0, 1) for part in attended]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).unsqueeze(0)


@torch.library.custom_op("infinity_emb::attend", mutates_args=())
def attend_as_operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    scaling: float | None,
    sliding_window: int | None,
    is_causal: bool,
    is_pooled: bool,
) -> Tensor:
    """Attend within packed sequences, in a form that torch.compile does not look into.

    starts: (B + 1,) int32, where each sequence starts. Returns (1, T, H, D).
    """
    runs = find_equal_runs([end - start for start, end in itertools.pairwise(starts.tolist())])
    split = split_into_runs(
        Heads(query, key, value), runs, scaling, sliding_window, is_causal=is_causal, is_pooled=is_pooled
    )
    return join_runs([scaled_dot_product_attention(*heads, **options) for heads, options in split])


@attend_as_operator.register_fake
def _describe_output(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    """Return an empty tensor of the shape that the operator returns."""
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


def _view_sequences(states: Tensor, run: Run) -> Tensor:
    """Return the run's sequences of (1, H, T, D) as a view, (num_sequences, H, length, D)."""
    _, num_heads, _, head_dim = states.shape
    _, head_stride, token_stride, stride = states.stride()
    # One operator rather than four: each gives up the interpreter lock, which a busy event loop then keeps.
    return states.as_strided(
        (run.num_sequences, num_heads, run.length, head_dim),
        (run.length * token_stride, head_stride, token_stride, stride),
        states.storage_offset() + run.start * token_stride,
    )


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
