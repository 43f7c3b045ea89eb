"""Packed features hold each sequence once, and a head gets the tokens that it reads."""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.attention.varlen
from hypothesis import given
from hypothesis import strategies as st

from infinity_emb.backends.torch.input_layout import HeadReads, InputLayout
from infinity_emb.backends.torch.packed_features import build_packed_features
from infinity_emb.backends.torch.packed_layout import find_equal_runs
from infinity_emb.items import Encoded


@given(st.lists(st.integers(1, 5), max_size=30))
def test_runs_cover_the_row_in_order(lengths: list[int]) -> None:
    runs = find_equal_runs(lengths)

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
def test_packed_sequences_holds_every_sequence_end_to_end(
    lengths: list[int], has_type_ids: bool, position_offset: int
) -> None:
    items = _texts(lengths, has_type_ids=has_type_ids)
    layout = InputLayout(form="packed", position_offset=position_offset, has_type_ids=has_type_ids)

    features = build_packed_features(items, layout, torch.device("cpu"))

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

    features = build_packed_features(items, layout, torch.device("cpu"))

    row = features["packed_sequences"]
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
