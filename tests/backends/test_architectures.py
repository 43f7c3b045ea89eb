"""Every architecture against sentence-transformers itself, packed where it can be and padded elsewhere."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from tests.small_models import PACKED_ARCHITECTURES, PADDED_ARCHITECTURES, random_texts, save_small_model

pytestmark = pytest.mark.model


def _embed(path: Path, texts: list[str], **options: object) -> tuple[np.ndarray, AsyncEmbeddingEngine]:
    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(model_name_or_path=str(path), device="cpu", model_warmup=False, **options)
    )

    async def run() -> np.ndarray:
        async with engine:
            return np.array((await engine.embed(texts))[0])

    return asyncio.run(run()), engine


def _reference(path: Path, texts: list[str]) -> np.ndarray:
    """One text at a time, so that the reference does not pad either."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(path), device="cpu")
    return np.concatenate([model.encode([text], show_progress_bar=False) for text in texts])


@pytest.mark.parametrize("model_type", [*PACKED_ARCHITECTURES, *PADDED_ARCHITECTURES])
def test_vectors_equal_sentence_transformers(model_type: str, tmp_path: Path) -> None:
    path = save_small_model(tmp_path, model_type)
    texts = random_texts(60, max_words=200)

    vectors, engine = _embed(path, texts)

    assert engine.info.attention == ("packed" if model_type in PACKED_ARCHITECTURES else "padded")
    expected = _reference(path, texts)
    assert np.abs(vectors - expected).max() <= 2e-5
    cosines = (vectors * expected).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() >= 0.99999
    assert np.abs(expected - expected[0]).max() > 0.01, "vectors that are all alike would prove nothing"
