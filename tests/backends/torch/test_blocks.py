"""Blocks hold each item once, and padding is bounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infinity_emb.backends.torch.blocks import MAX_PADDING, build_blocks, build_padded_features
from infinity_emb.backends.torch.input_layout import InputLayout, get_first_position
from infinity_emb.items import Encoded

CPU = torch.device("cpu")
LAYOUTS = [
    InputLayout(form="padded"),
    InputLayout(form="padded", may_pad=False),
    InputLayout(form="packed"),
    InputLayout(form="packed", reads="all"),
    InputLayout(form="bag"),
]


def encode(*lengths: int, **options: Any) -> list[Encoded]:
    return [Encoded(np.arange(5, 5 + length, dtype=np.int32), **options) for length in lengths]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=30))
def test_each_item_is_in_one_block(layout: InputLayout, lengths: list[int]) -> None:
    blocks = list(build_blocks(encode(*lengths), layout, CPU))
    positions = [position for block in blocks for position in block.positions]
    assert sorted(positions) == list(range(len(lengths)))
    ascending = [lengths[position] for position in positions]
    assert ascending == sorted(lengths)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30))
def test_a_padded_block_is_padded_by_little(lengths: list[int]) -> None:
    for block in build_blocks(encode(*lengths), InputLayout(form="padded"), CPU):
        mask = block.features["attention_mask"].float()
        assert 1 - mask.mean().item() <= MAX_PADDING + 1e-6


def test_without_padding_only_equal_lengths_share_a_block() -> None:
    layout = InputLayout(form="padded", may_pad=False)
    blocks = list(build_blocks(encode(3, 2, 3, 2, 4), layout, CPU))
    assert [block.positions for block in blocks] == [[1, 3], [0, 2], [4]]


@pytest.mark.parametrize("pads_left", [False, True])
def test_padding_is_on_the_side_of_the_layout(pads_left: bool) -> None:
    layout = InputLayout(form="padded", pad_token_id=9, pads_left=pads_left, constants={"logits_to_keep": 1})
    features = build_padded_features(encode(1, 3), layout, CPU)
    assert features["input_ids"].tolist() == [[9, 9, 5] if pads_left else [5, 9, 9], [5, 6, 7]]
    assert features["attention_mask"].tolist() == [[0, 0, 1] if pads_left else [1, 0, 0], [1, 1, 1]]
    assert features["logits_to_keep"] == 1
    assert "token_type_ids" not in features
    assert "key_mask" not in features


def test_segment_ids_are_0_where_an_item_has_none() -> None:
    pair = Encoded(np.array([5, 6], dtype=np.int32), np.array([0, 1], dtype=np.int32))
    layout = InputLayout(form="padded", has_type_ids=True)
    features = build_padded_features([*encode(2), pair], layout, CPU)
    assert features["token_type_ids"].tolist() == [[0, 0], [0, 1]]


def test_a_query_expansion_is_not_attended_to_and_never_packed() -> None:
    items = encode(4, num_attended_tokens=2)
    (block,) = build_blocks(items, InputLayout(form="packed"), CPU)
    assert block.features["attention_mask"].tolist() == [[1, 1, 0, 0]]
    assert block.features["key_mask"].tolist() == [[1, 1, 0, 0]], "for the packed kernel"
    assert block.features["query_expansion_positions"].tolist() == [[False, False, True, True]]


def test_a_bag_holds_all_tokens_and_the_start_of_each_text() -> None:
    (block,) = build_blocks(encode(2, 0, 1), InputLayout(form="bag"), CPU)
    assert block.positions == [1, 2, 0]
    assert block.features["offsets"].tolist() == [0, 0, 1]
    assert block.features["input_ids"].tolist() == [5, 5, 6]


def make_preprocessed(length: int, **features: Any) -> Encoded:
    ids = np.arange(length, dtype=np.int64)[None]
    return Encoded(ids[0].astype(np.int32), features={"input_ids": ids, **features})


def test_the_models_own_features_are_padded_together() -> None:
    items = [
        make_preprocessed(length, attention_mask=np.ones((1, length), dtype=np.int64)) for length in (3, 1)
    ]
    (block,) = build_blocks(items, InputLayout(form="padded", pad_token_id=9), CPU)
    assert block.positions == [1, 0]
    assert block.features["input_ids"].tolist() == [[0, 9, 9], [0, 1, 2]]
    assert block.features["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]


def test_images_of_different_sizes_are_in_different_blocks() -> None:
    items = [Encoded(np.zeros(0, np.int32), features={"pixels": np.ones((1, size, 2))}) for size in (3, 4, 3)]
    blocks = list(build_blocks(items, InputLayout(form="padded"), CPU))
    assert [block.positions for block in blocks] == [[0, 2], [1]]


def test_lists_are_concatenated() -> None:
    items = [make_preprocessed(2, messages=[name]) for name in ("one", "two")]
    (block,) = build_blocks(items, InputLayout(form="padded"), CPU)
    assert block.features["messages"] == ["one", "two"]


class Embeddings(torch.nn.Module):
    def __init__(self, padding_idx: int | None, table: torch.nn.Module) -> None:
        super().__init__()
        self.padding_idx = padding_idx
        self.position_embeddings = table


@pytest.mark.parametrize(
    ("embeddings", "position"),
    [
        (Embeddings(1, torch.nn.Embedding(8, 2)), 2),
        (Embeddings(None, torch.nn.Embedding(8, 2)), 0),
        (Embeddings(1, torch.nn.Identity()), 0),
        (torch.nn.Linear(2, 2), 0),
    ],
)
def test_positions_start_after_the_padding_index(embeddings: torch.nn.Module, position: int) -> None:
    assert get_first_position(torch.nn.Sequential(embeddings)) == position
