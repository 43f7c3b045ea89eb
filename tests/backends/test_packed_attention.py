"""Both kernels against attention written out by hand; for torch's CUDA kernel stands its definition."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from infinity_emb.backends.base import Encoded, InputOptions, Pair
from infinity_emb.backends.packed_attention import (
    PackedLayout,
    grouped_attention,
    runs_of_equal_length,
    varlen_attention,
)
from infinity_emb.backends.torch_inputs import HeadReads, InputLayout, packed_features
from infinity_emb.backends.torch_loading import load_model
from infinity_emb.config import EngineArgs
from infinity_emb.model_files import resolve_model_files
from tests.small_models import save_small_classifier, save_small_model


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
        packed_layout=PackedLayout(runs_of_equal_length(case.lengths), starts, max(case.lengths)),
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


def torch_kernel_replaced(stand_in: Callable[..., Tensor]) -> Any:
    return patch.object(torch.nn.attention.varlen, "varlen_attn", stand_in)


# --- Tests ---


@settings(deadline=None)
@given(CASES)
def test_grouped_attention_equals_attention_by_hand(case: Case) -> None:
    assert np.abs(_compute(grouped_attention, case).numpy() - _by_hand(case)).max() <= 1e-12


@pytest.mark.parametrize("stand_in", [varlen_attn_by_definition, _varlen_attn_2_11])
@settings(deadline=None, max_examples=50)
@given(case=CASES)
def test_varlen_attention_equals_attention_by_hand(stand_in: Callable[..., Tensor], case: Case) -> None:
    with torch_kernel_replaced(stand_in):
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
    layout = PackedLayout(runs_of_equal_length([2]), torch.tensor([0, 2], dtype=torch.int32), 2)
    states = torch.zeros(1, 1, 2, 8)

    with pytest.raises(NotImplementedError, match=argument):
        kernel(torch.nn.Module(), states, states, states, None, packed_layout=layout, **{argument: 1.0})


@given(st.lists(st.integers(1, 5), max_size=30))
def test_runs_cover_the_row_in_order(lengths: list[int]) -> None:
    runs = runs_of_equal_length(lengths)

    assert [run.length for run in runs for _ in range(run.num_sequences)] == lengths
    assert [run.start for run in runs] == [
        sum(run.length * run.num_sequences for run in runs[:position]) for position in range(len(runs))
    ]
    assert all(run.length != following.length for run, following in itertools.pairwise(runs))


def _texts(lengths: list[int], *, has_type_ids: bool = False) -> list[Encoded]:
    """Texts of tokens that are all different."""
    token_ids = np.arange(100, 100 + sum(lengths), dtype=np.int32)
    sequences = np.split(token_ids, np.cumsum(lengths)[:-1])
    return [Encoded(ids, ids % 2 if has_type_ids and ids[0] % 3 else None) for ids in sequences]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12).map(sorted), st.booleans(), st.integers(0, 3))
def test_packed_row_holds_every_sequence_end_to_end(
    lengths: list[int], has_type_ids: bool, position_offset: int
) -> None:
    items = _texts(lengths, has_type_ids=has_type_ids)
    layout = InputLayout(form="packed", position_offset=position_offset, has_type_ids=has_type_ids)

    features = packed_features(items, layout, torch.device("cpu"))

    assert features["input_ids"].tolist() == [[token for item in items for token in item.token_ids]]
    if has_type_ids:
        assert features["token_type_ids"].tolist() == [
            [
                type_id
                for item in items
                for type_id in (np.zeros(len(item.token_ids)) if item.type_ids is None else item.type_ids)
            ]
        ]
    else:
        assert "token_type_ids" not in features
    assert features["position_ids"].tolist() == [
        [position + position_offset for length in lengths for position in range(length)]
    ]
    assert features["seq_idx"].tolist() == [
        [row for row, length in enumerate(lengths) for _ in range(length)]
    ]
    assert features["cu_seq_lens_q"].tolist() == [0, *np.cumsum(lengths)]
    assert features["packed_layout"].max_length == max(lengths)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12).map(sorted),
    st.sampled_from(["first", "last", "all"]),
    st.sampled_from([None, 104]),
)
def test_a_head_is_handed_the_tokens_that_it_reads(
    lengths: list[int], reads: HeadReads, skipped: int | None
) -> None:
    """As a padded batch of them, beside the flat row and their places in it."""
    items = _texts(lengths)
    layout = InputLayout(form="packed", reads=reads, pad_token_id=7, skipped_token_id=skipped)

    features = packed_features(items, layout, torch.device("cpu"))

    row = features["packed_row"]
    flat = row.features["input_ids"][0]
    found = [
        flat[places[kept]].tolist()
        for places, kept in zip(row.gather, features["attention_mask"].bool(), strict=True)
    ]
    assert found == [_tokens_read(item.token_ids.tolist(), reads, skipped) for item in items]
    assert [
        ids[kept].tolist()
        for ids, kept in zip(features["input_ids"], features["attention_mask"].bool(), strict=True)
    ] == found
    assert (features["input_ids"][features["attention_mask"] == 0] == 7).all()
    assert not {"seq_idx", "modality"} & row.features.keys(), "the network's forward knows neither"


def _tokens_read(tokens: list[int], reads: HeadReads, skipped: int | None) -> list[int]:
    if reads == "all":
        return tokens
    kept = [token for token in tokens if token != skipped]
    return tokens[:1] if reads == "first" or not kept else kept[-1:]


class _Questions(TorchDispatchMode):
    """Notes the operators whose answer the host must wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(operator)
        if name.split(".")[1] in _WAITING_OPERATORS or (
            name == "aten.repeat_interleave.Tensor" and (kwargs or {}).get("output_size") is None
        ):
            self.asked.append(name)
        if name == "aten.index.Tensor" and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        ):
            self.asked.append("indexing by a mask")
        return operator(*args, **(kwargs or {}))


_WAITING_OPERATORS = frozenset(
    {
        "item",
        "_local_scalar_dense",
        "is_nonzero",
        "nonzero",
        "masked_select",
        "bincount",
        "equal",
        "_unique2",
    }
)


def _launch_and_listen(path: Path, *inputs: str | Pair) -> tuple[str, list[str]]:
    """How the model was packed, and what launching a batch asked of the device."""
    args = EngineArgs(model_name_or_path=str(path), device="cpu", model_warmup=False)
    model = load_model(args, resolve_model_files(str(path)))
    batch = model.prepare(inputs, InputOptions())
    with _Questions() as questions:
        model.replicas[0].launch(batch)
    return f"{model.info.attention}: {model.info.attention_reason}", questions.asked


_LENGTHS = (40, 3, 17, 3)


@pytest.mark.model
@pytest.mark.parametrize(
    ("model_type", "pooling_mode"),
    [
        ("bert", "mean"),
        ("bert", "cls"),
        ("bert", "lasttoken"),
        ("xlm-roberta", "mean"),
        ("modernbert", "mean"),
        ("qwen3", "lasttoken"),
        ("mistral", "lasttoken"),
        ("gemma3_text", "mean"),
    ],
)
def test_launching_a_packed_batch_asks_nothing_of_the_device(
    model_type: str, pooling_mode: str, tmp_path: Path
) -> None:
    """On a GPU one question, `.item()` or `if tensor:`, waits for all batches before, so that none overlap.

    transformers asked one in its decoders as long as a mask function was registered for our kernels.
    """
    path = save_small_model(tmp_path, model_type, pooling_mode=pooling_mode)
    how, asked = _launch_and_listen(path, *("word5 " * length for length in _LENGTHS))

    assert how.startswith("packed: ")
    assert asked == []


@pytest.mark.model
@pytest.mark.parametrize(
    ("model_type", "reads", "config"),
    [
        ("bert", "first", {}),
        ("xlm-roberta", "first", {}),
        ("modernbert", "first", {}),
        ("modernbert", "all", {"classifier_pooling": "mean"}),
        ("qwen3", "last", {}),
    ],
)
def test_launching_a_packed_batch_of_pairs_asks_nothing_of_the_device(
    model_type: str, reads: str, config: dict[str, str], tmp_path: Path
) -> None:
    path = save_small_classifier(tmp_path, model_type, num_labels=1, **config)
    how, asked = _launch_and_listen(path, *(Pair("word5", "word6 " * length) for length in _LENGTHS))

    assert how.startswith("packed: ")
    assert f"{reads} rows to the head" in how
    assert asked == []
