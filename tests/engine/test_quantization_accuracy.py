"""Compare int8 and uint8 vectors of the bundled model with its float32 vectors."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from infinity_emb.backends.sample_texts import load_sample_texts
from infinity_emb.items import Float32Array
from infinity_emb.postprocessing import compute_ranges, quantize_vectors, truncate_dimensions
from infinity_emb.types import EmbeddingDtype

Scores = npt.NDArray[np.float64]


class Encoded(NamedTuple):
    calibration: Float32Array
    others: Float32Array  # of texts that the ranges have not seen


@pytest.fixture(scope="module")
def encoded() -> Encoded:
    from pydoc_data.topics import topics  # the manual of Python, which comes with it

    from sentence_transformers import SentenceTransformer

    from benchmarks.texts import bundled_model_folder

    model = SentenceTransformer(str(bundled_model_folder()), device="cpu")
    paragraphs = [
        part for topic in topics.values() for part in topic.split("\n\n") if 8 < len(part.split()) < 80
    ]
    others = paragraphs[:: len(paragraphs) // 150]
    return Encoded(
        model.encode(load_sample_texts(), show_progress_bar=False),
        model.encode(others, show_progress_bar=False),
    )


def compute_cosines(rows: npt.NDArray[np.generic]) -> Scores:
    """(N, N - 1): each row with all others."""
    unit = rows.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    scores = unit @ unit.T
    return scores[~np.eye(len(rows), dtype=bool)].reshape(len(rows), -1)


def correlate_ranks(scores: Scores, others: Scores) -> Scores:
    """Spearman's, row by row: 1 where both sort the neighbours alike."""
    ranks = [each.argsort(axis=1).argsort(axis=1) for each in (scores, others)]
    return np.array([np.corrcoef(*pair)[0, 1] for pair in zip(*ranks, strict=True)])


@pytest.mark.model
@pytest.mark.parametrize("dimensions", [None, 128, 64])
def test_few_values_of_other_texts_are_outside_the_ranges(
    encoded: Encoded, tmp_path: Path, dimensions: int | None
) -> None:
    """Of N random texts, the extremes of a dimension leave out 2 in N + 1 values of another such text.

    The ranges of full vectors would leave out a quarter of the values at 64 dimensions, as short rows are
    scaled up.
    """
    ranges = compute_ranges(truncate_dimensions(encoded.calibration, dimensions))
    rows = truncate_dimensions(encoded.others, dimensions)
    assert ((rows < ranges.low) | (rows > ranges.high)).mean() <= 0.01
    if dimensions == 64:
        full = compute_ranges(encoded.calibration)
        assert ((rows < full.low[:64]) | (rows > full.high[:64])).mean() >= 0.2


@pytest.mark.model
@pytest.mark.parametrize("dimensions", [None, 128, 64])
@pytest.mark.parametrize("texts", ["calibration", "others"])
def test_quantized_vectors_have_the_neighbours_of_float32(
    encoded: Encoded, dimensions: int | None, texts: str
) -> None:
    """Mapped back with the ranges almost exactly; as bare numbers, where each dimension has a scale and an
    origin of its own, roughly: that is the format, sentence-transformers' numbers are the same."""
    ranges = compute_ranges(truncate_dimensions(encoded.calibration, dimensions))
    rows = truncate_dimensions(getattr(encoded, texts), dimensions)
    expected = compute_cosines(rows)
    numbers = quantize_vectors(rows, EmbeddingDtype.uint8, ranges)
    restored = ranges.low + (numbers + np.float32(0.5)) * (ranges.high - ranges.low) / 255

    correlations = correlate_ranks(compute_cosines(restored), expected)
    assert correlations.mean() >= 0.999
    assert correlations.min() >= 0.99
    for dtype, mean in [
        (EmbeddingDtype.int8, 0.85),
        (EmbeddingDtype.uint8, 0.9),
        (EmbeddingDtype.float16, 0.9999),
    ]:
        assert (
            correlate_ranks(compute_cosines(quantize_vectors(rows, dtype, ranges)), expected).mean() >= mean
        )
