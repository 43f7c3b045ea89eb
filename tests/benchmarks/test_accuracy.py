"""Compare vectors with known differences."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.accuracy import Accuracy, compare
from benchmarks.variants import GPU_VARIANTS, VARIANTS, select_variants
from infinity_emb.types import Dtype, InferenceEngine

RANDOM = np.random.default_rng(0)


def test_vectors_that_differ_in_length_alone_are_the_same() -> None:
    vectors = RANDOM.normal(size=(20, 8))
    assert compare(vectors * 3, vectors) == pytest.approx(Accuracy(1, 1, 1, 1, 1, 0), abs=1e-9)


def test_one_text_that_moved_shows_in_the_lowest() -> None:
    expected = RANDOM.normal(size=(20, 8))
    found = expected.copy()
    found[7] = -found[7]
    accuracy = compare(found, expected)
    assert accuracy.lowest_cosine == pytest.approx(-1)
    assert accuracy.mean_cosine == pytest.approx(0.9)
    assert accuracy.lowest_rank_correlation == pytest.approx(-1)


def test_every_variant_is_an_engine_and_a_dtype_that_can_be_asked_for() -> None:
    for each in VARIANTS + GPU_VARIANTS:
        assert InferenceEngine(each.engine)
        assert Dtype(each.dtype)


def test_variants_are_chosen_by_name_and_device() -> None:
    assert [each.name for each in select_variants("torch-int8,torch", "cpu")] == ["torch", "torch-int8"]
    assert "torch-float16" not in [each.name for each in select_variants("", "cpu")]
    assert "torch-float16" in [each.name for each in select_variants("", "cuda")]
    with pytest.raises(SystemExit, match="no such engines: nothing"):
        select_variants("torch,nothing", "cpu")
