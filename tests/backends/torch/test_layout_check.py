"""A layout is accepted only where its outputs equal those of single texts up to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from infinity_emb.backends.torch.forward import TorchModel
from infinity_emb.backends.torch.input_layout import InputLayout
from infinity_emb.backends.torch.layout_check import compute_vectors, get_tolerance, measure_difference
from infinity_emb.items import Encoded, ForwardSpec
from infinity_emb.types import OutputName


@pytest.mark.parametrize(("factor", "distance"), [(1.0, 0.0), (-1.0, 2.0), (np.nan, 2.0), (0.0, 1.0)])
def test_rows_that_are_no_numbers_are_as_far_as_vectors_can_be(factor: float, distance: float) -> None:
    rows = np.eye(3, dtype=np.float32)
    assert measure_difference(rows * np.float32(factor), rows, "sentence_embedding") == distance


@pytest.mark.parametrize(
    ("scores", "distance"),
    [([4.0, -2.0], 0.0), ([3.0, -2.0], 0.25), ([-4.0, 2.0], 2.0), ([np.nan, -2.0], np.inf), ([4.0], np.inf)],
)
def test_scores_are_compared_by_their_largest(scores: list[float], distance: float) -> None:
    """Not by a cosine: of one score it says nothing but the sign."""
    expected = np.array([[4.0], [-2.0]], dtype=np.float32)
    assert measure_difference(np.array(scores, dtype=np.float32)[:, None], expected, "scores") == distance


def test_scores_far_below_1_are_compared_by_their_largest_too() -> None:
    expected = np.array([[4e-4], [-2e-4]], dtype=np.float32)
    assert measure_difference(-expected, expected, "scores") == 2


@pytest.mark.parametrize("expected", [0.0, np.nan, np.inf])
def test_scores_that_are_all_0_or_no_numbers_prove_nothing(expected: float) -> None:
    scores = np.full((2, 1), expected, dtype=np.float32)
    assert measure_difference(scores, scores, "scores") == np.inf


class TokenSums(torch.nn.Module):
    """The vector of a text is (sum of its ids, number of its tokens)."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=dtype))

    def forward(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        mask = features["attention_mask"]
        vectors = torch.stack([(features["input_ids"] * mask).sum(1), mask.sum(1)], dim=1).float()
        return features | {"sentence_embedding": vectors}


def make_model(dense_name: str = "sentence_embedding", dtype: torch.dtype = torch.float32) -> TorchModel:
    model = SentenceTransformer(modules=[TokenSums(dtype)], device="cpu")
    return TorchModel(model=model, layouts={}, dense_name=dense_name)


def encode(output: OutputName, task: str | None = None) -> list[Encoded]:
    spec = ForwardSpec(task=task, outputs=(output,))
    return [Encoded(np.array(ids, dtype=np.int32), spec=spec) for ids in ([5, 6], [7])]


@pytest.mark.parametrize("task", [None, "query"])
def test_a_batch_is_computed_with_the_layout_that_is_checked(task: str | None) -> None:
    vectors = compute_vectors(make_model(), InputLayout(form="padded", may_pad=False), encode("dense", task))
    assert vectors.tolist() == [[11, 2], [7, 1]]


def test_sparse_vectors_are_made_dense_with_equal_widths() -> None:
    vectors = compute_vectors(make_model(), InputLayout(form="padded"), encode("sparse"))
    one = compute_vectors(make_model(), InputLayout(form="padded"), encode("sparse")[:1])
    assert vectors.shape[1] == one.shape[1]
    assert vectors[:, :2].tolist() == [[11, 2], [7, 1]]
    assert not vectors[:, 2:].any()


def test_coarser_dtypes_are_allowed_larger_differences() -> None:
    tolerances = [get_tolerance(make_model(dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)]
    assert 0 < tolerances[0] < tolerances[1]
    scores = [get_tolerance(make_model("scores", dtype)) for dtype in (torch.float32, torch.bfloat16)]
    assert 0 < scores[0] < scores[1]
