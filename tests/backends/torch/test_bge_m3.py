"""BGE-M3's heads on packed and padded features; tests/parity/test_m3.py compares a whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from infinity_emb.backends.torch.bge_m3 import MULTIVECTOR_FILE, SPARSE_FILE, M3Heads, has_m3_heads
from infinity_emb.backends.torch.packed_layout import PackedLayout, find_equal_runs
from infinity_emb.errors import StartupError

START, END, PADDING = 0, 2, 1
SPECIAL_IDS = (START, END, PADDING)
# The only channel is the weight of the token.
TEXTS = [[(START, 9.0), (7, 1.0), (END, 9.0)], [(START, 9.0), (7, 1.0), (8, -1.0), (7, 3.0), (END, 9.0)]]


@pytest.fixture
def heads() -> M3Heads:
    sparse, multivector = torch.nn.Linear(1, 1), torch.nn.Linear(1, 2)
    for linear in (sparse, multivector):
        torch.nn.init.ones_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    return M3Heads(sparse, multivector, SPECIAL_IDS)


def pack() -> dict[str, Any]:
    lengths = [len(text) for text in TEXTS]
    starts = torch.tensor([0, lengths[0], sum(lengths)], dtype=torch.int32)
    ids, embeddings = zip(*(token for text in TEXTS for token in text), strict=True)
    return {
        "input_ids": torch.tensor([ids]),
        "token_embeddings": torch.tensor([embeddings])[..., None],
        "seq_idx": torch.tensor([[0] * lengths[0] + [1] * lengths[1]]),
        "cu_seq_lens_q": starts,
        "packed_layout": PackedLayout(find_equal_runs(lengths), starts, max(lengths)),
    }


def pad() -> dict[str, Any]:
    width = max(map(len, TEXTS))
    padded = torch.tensor([[*text, *[(PADDING, 9.0)] * (width - len(text))] for text in TEXTS])
    ids: Tensor = padded[..., 0].long()
    return {
        "input_ids": ids,
        "token_embeddings": padded[..., 1:],
        "attention_mask": (ids != PADDING).long(),
    }


@pytest.mark.parametrize("features", [pack(), pad()], ids=["packed", "padded"])
@torch.inference_mode()
def test_a_token_has_its_largest_weight_and_special_tokens_none(
    heads: M3Heads, features: dict[str, Any]
) -> None:
    output = heads(features, wanted_outputs=("sparse",))["sparse_output"]
    entries = output.copy_to_host().to_entries()
    assert [entry.indices.tolist() for entry in entries] == [[7], [7]]
    assert [entry.values.tolist() for entry in entries] == [[1.0], [3.0]]


@pytest.mark.parametrize("features", [pack(), pad()], ids=["packed", "padded"])
@torch.inference_mode()
def test_each_token_but_the_first_has_a_vector_of_length_1(heads: M3Heads, features: dict[str, Any]) -> None:
    output = heads(features, wanted_outputs=("multivector",))["multivector_output"]
    entries = output.copy_to_host().to_entries()
    assert [entry.shape for entry in entries] == [(len(text) - 1, 2) for text in TEXTS]
    signs = [[0.5**0.5 if weight > 0 else -(0.5**0.5) for _, weight in text[1:]] for text in TEXTS]
    for entry, expected in zip(entries, signs, strict=True):
        assert entry[:, 0].tolist() == pytest.approx(expected)


def test_an_output_that_is_not_requested_is_not_computed(heads: M3Heads) -> None:
    assert heads(pad(), wanted_outputs=("dense",)).keys() == pad().keys()


def test_heads_are_loaded_from_their_files(heads: M3Heads, tmp_path: Path) -> None:
    assert not has_m3_heads(tmp_path)
    torch.save(heads.sparse.state_dict(), tmp_path / SPARSE_FILE)
    with pytest.raises(StartupError, match=f"{MULTIVECTOR_FILE} is missing"):
        has_m3_heads(tmp_path)
    torch.save(heads.multivector.state_dict(), tmp_path / MULTIVECTOR_FILE)
    assert has_m3_heads(tmp_path)
    loaded = M3Heads.load(tmp_path, SPECIAL_IDS)
    assert torch.equal(loaded.multivector.weight, heads.multivector.weight)
    assert loaded.special_ids.tolist() == sorted(SPECIAL_IDS)
