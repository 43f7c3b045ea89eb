"""Both kernels against attention written out by hand; for torch's CUDA kernel stands its definition."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infinity_emb.backends.torch.packed_attention import grouped_attention, varlen_attention
from infinity_emb.backends.torch.packed_layout import PackedLayout, find_equal_runs


class Case(NamedTuple):
    """One attention of one packed row."""

    lengths: list[int]
    num_heads: int
    num_kv_heads: int
    sliding_window: int | None
    is_causal: bool
    scaling: float | None
    seed: int


CASES = st.builds(
    lambda lengths, kv, sharing, window, is_causal, scaling, seed: Case(
        sorted(lengths), kv * sharing, kv, window, is_causal, scaling, seed
    ),
    st.lists(st.integers(1, 20), min_size=1, max_size=6),
    st.integers(1, 2),
    st.integers(1, 3),
    st.none() | st.integers(1, 24),
    st.booleans(),
    st.none() | st.floats(0.05, 2),
    st.integers(0, 2**31),
)
# A window's edges: as long as the text, one less, one more, and only the token itself.
EDGES = [
    Case([3, 5, 5, 6, 7], 4, 2, window, is_causal, None, 0)
    for window in (None, 1, 4, 5, 6, 7)
    for is_causal in (False, True)
]
_HEAD_DIM = 8


def _states(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(case.seed)
    query, key, value = (
        torch.randn(1, heads, sum(case.lengths), _HEAD_DIM, generator=generator, dtype=torch.float64)
        for heads in (case.num_heads, case.num_kv_heads, case.num_kv_heads)
    )
    return query, key, value


def _compute(kernel: Callable[..., tuple[Tensor, None]], case: Case) -> Tensor:
    starts = torch.tensor([0, *np.cumsum(case.lengths)], dtype=torch.int32)
    rows, weights = kernel(
        torch.nn.Module(),
        *_states(case),
        None,
        packed_layout=PackedLayout(find_equal_runs(case.lengths), starts, max(case.lengths)),
        scaling=case.scaling,
        sliding_window=case.sliding_window,
        is_causal=case.is_causal,
        dropout=0.0,
    )
    assert weights is None
    return rows


def _by_hand(case: Case) -> np.ndarray:
    """(1, T, H, D): one token and one head at a time, over a list of the tokens that it sees."""
    query, key, value = (states[0].numpy() for states in _states(case))
    scaling = _HEAD_DIM**-0.5 if case.scaling is None else case.scaling
    rows = np.empty((1, sum(case.lengths), case.num_heads, _HEAD_DIM))
    start = 0
    for length in case.lengths:
        for i in range(length):
            seen = [start + j for j in range(length) if _sees(i, j, case)]
            for head in range(case.num_heads):
                kv_head = head * case.num_kv_heads // case.num_heads
                scores = key[kv_head, seen] @ query[head, start + i] * scaling
                weights = np.exp(scores - scores.max())
                rows[0, start + i, head] = weights @ value[kv_head, seen] / weights.sum()
        start += length
    return rows


def _sees(i: int, j: int, case: Case) -> bool:
    is_near = case.sliding_window is None or abs(i - j) < case.sliding_window
    return is_near and (j <= i or not case.is_causal)


# --- Stand-ins for torch.nn.attention.varlen.varlen_attn, with the signatures of three versions of torch ---


def varlen_attn_by_definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """The definition: (T, H, D); a token sees `left` before itself and `right` behind, -1 for all."""
    assert cu_seq_k is not None
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert cu_seq_q.is_contiguous()
    assert isinstance(window_size, tuple), "torch compares it with a tuple"
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1, "the flash kernel demands it"
    assert enable_gqa or query.shape[1] == key.shape[1]
    lengths = cu_seq_q.diff().tolist()
    assert max_q == max_k == max(lengths)
    num_sharing = query.shape[1] // key.shape[1]
    left, right = window_size
    parts = []
    for start, length in zip(cu_seq_q.tolist(), lengths, strict=False):
        q, k, v = (states[start : start + length].transpose(0, 1) for states in (query, key, value))
        k, v = k.repeat_interleave(num_sharing, dim=0), v.repeat_interleave(num_sharing, dim=0)
        offset = torch.arange(length)[None, :] - torch.arange(length)[:, None]  # of the key from the query
        is_seen = torch.ones(length, length, dtype=torch.bool)
        if left >= 0:
            is_seen &= offset >= -left
        if right >= 0:
            is_seen &= offset <= right
        scores = q @ k.transpose(1, 2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        weights = scores.masked_fill(~is_seen, float("-inf")).softmax(-1)
        parts.append((weights @ v).transpose(0, 1))
    return torch.cat(parts)


def _varlen_attn_2_11(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    return varlen_attn_by_definition(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size
    )


def _varlen_attn_2_10(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    return_aux: Any = None,
) -> Tensor:
    raise AssertionError("it knows neither windows nor scales, and must not be called")


def torch_kernel_replaced(external: Callable[..., Tensor]) -> Any:
    return patch.object(torch.nn.attention.varlen, "varlen_attn", external)


# --- Tests ---


@settings(deadline=None)
@given(CASES)
def test_grouped_attention_equals_attention_by_hand(case: Case) -> None:
    assert np.abs(_compute(grouped_attention, case).numpy() - _by_hand(case)).max() <= 1e-12


@pytest.mark.parametrize("external", [varlen_attn_by_definition, _varlen_attn_2_11])
@settings(deadline=None, max_examples=50)
@given(case=CASES)
def test_varlen_attention_equals_attention_by_hand(external: Callable[..., Tensor], case: Case) -> None:
    with torch_kernel_replaced(external):
        rows = _compute(varlen_attention, case)

    assert np.abs(rows.numpy() - _by_hand(case)).max() <= 1e-12


@pytest.mark.parametrize("case", EDGES, ids=str)
def test_a_token_sees_those_less_than_the_window_away(case: Case) -> None:
    expected = _by_hand(case)

    with torch_kernel_replaced(varlen_attn_by_definition):
        assert np.abs(_compute(varlen_attention, case).numpy() - expected).max() <= 1e-12
    assert np.abs(_compute(grouped_attention, case).numpy() - expected).max() <= 1e-12
    if case.sliding_window is not None and case.sliding_window < max(case.lengths):
        wider = case._replace(sliding_window=case.sliding_window + 1)
        assert np.abs(_by_hand(wider) - expected).max() > 1e-2, "the edge must show"


@pytest.mark.parametrize("kernel", [grouped_attention, varlen_attention])
@pytest.mark.parametrize("pads_left", [False, True])
@settings(deadline=None, max_examples=40)
@given(case=CASES)
def test_padding_changes_nothing_where_a_key_mask_tells_of_it(
    kernel: Callable[..., tuple[Tensor, None]], pads_left: bool, case: Case
) -> None:
    """Models that are served packed get some inputs padded, such as images and expanded queries."""
    width = max(case.lengths) + case.seed % 3
    places = [
        slice(width - length, width) if pads_left else slice(length) for length in case.lengths
    ]  # of each text in its row
    mask = torch.zeros(len(case.lengths), width, dtype=torch.int64)
    padded = [
        torch.full((len(case.lengths), states.shape[1], width, _HEAD_DIM), 9.0).double()
        for states in _states(case)
    ]
    ends = np.cumsum(case.lengths).tolist()
    for row, (place, end, length) in enumerate(zip(places, ends, case.lengths, strict=True)):
        mask[row, place] = 1
        for states, flat in zip(padded, _states(case), strict=True):
            states[row, :, place] = flat[0, :, end - length : end]

    rows, weights = kernel(
        torch.nn.Module(),
        *padded,
        None,
        key_mask=mask,
        scaling=case.scaling,
        sliding_window=case.sliding_window,
        is_causal=case.is_causal,
    )

    assert weights is None
    assert torch.isfinite(rows).all(), "NaN of a padding token would spread in the next layer"
    found = torch.cat([row[place] for row, place in zip(rows, places, strict=True)])[None]
    assert np.abs(found.numpy() - _by_hand(case)).max() <= 1e-12


def test_without_a_layout_and_a_mask_of_its_own_a_batch_is_attended_as_transformers_says() -> None:
    case = Case([6], 2, 2, None, False, None, 0)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    rows, _ = grouped_attention(torch.nn.Module(), *_states(case), mask)
    assert np.abs(rows.numpy() - _by_hand(case._replace(is_causal=True))).max() <= 1e-12


def test_torch_calls_its_arguments_as_the_stand_in_does() -> None:
    names = list(inspect.signature(torch.nn.attention.varlen.varlen_attn).parameters)
    expected = list(inspect.signature(_varlen_attn_2_11).parameters)

    assert names[:7] == expected[:7]
    assert set(expected) <= set(names)


def test_varlen_attention_refuses_a_torch_without_windows() -> None:
    """The check at loading then takes the other kernel."""
    with (
        torch_kernel_replaced(_varlen_attn_2_10),
        pytest.raises(NotImplementedError, match=r"2\.11 or newer"),
    ):
        _compute(varlen_attention, EDGES[0])


@pytest.mark.parametrize("kernel", [grouped_attention, varlen_attention])
@pytest.mark.parametrize("argument", ["softcap", "s_aux", "position_bias", "output_attentions"])
def test_kernels_refuse_attention_that_they_do_not_know(
    kernel: Callable[..., tuple[Tensor, None]], argument: str
) -> None:
    layout = PackedLayout(find_equal_runs([2]), torch.tensor([0, 2], dtype=torch.int32), 2)
    states = torch.zeros(1, 1, 2, 8)

    with pytest.raises(NotImplementedError, match=argument):
        kernel(torch.nn.Module(), states, states, states, None, packed_layout=layout, **{argument: 1.0})
