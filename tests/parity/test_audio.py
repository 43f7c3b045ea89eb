"""CLAP against sentence-transformers, with clips of any rate and number of channels."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]  # ships no types
from sentence_transformers import SentenceTransformer

from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from tests.support.small_models import random_texts
from tests.support.small_models.media import SAMPLING_RATE, save_clap, sine_waves

pytestmark = [
    pytest.mark.model,
    # transformers' default configurations name start and end tokens outside of these small vocabularies.
    pytest.mark.filterwarnings("ignore"),
]

TEXTS = random_texts(12, max_words=40)
WAVES = sine_waves(4)


def wav(samples: np.ndarray, rate: int = SAMPLING_RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def test_texts_and_clips_equal_sentence_transformers(tmp_path: Path) -> None:
    path = save_clap(tmp_path)
    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(model_name_or_path=str(path), device="cpu", model_warmup=False)
    )
    reference = SentenceTransformer(str(path), device="cpu")
    stereo = np.stack([WAVES[0], WAVES[0]], axis=1)

    async def embed() -> tuple[np.ndarray, np.ndarray]:
        async with engine:
            clips = [*map(wav, WAVES), wav(stereo), wav(np.repeat(WAVES[0], 2), 2 * SAMPLING_RATE)]
            (texts, _), (sounds, _) = await asyncio.gather(
                engine.embed(TEXTS), engine.audio_embed(audios=clips)
            )
            return np.array(texts), np.array(sounds)

    texts, sounds = asyncio.run(embed())

    assert "audio_embed" in engine.info.capabilities
    expected = np.concatenate([reference.encode([text], show_progress_bar=False) for text in TEXTS])
    assert np.abs(texts - expected).max() <= 2e-5
    given = [{"array": samples, "sampling_rate": SAMPLING_RATE} for samples in WAVES]
    expected = np.concatenate([reference.encode([clip], show_progress_bar=False) for clip in given])
    assert np.abs(sounds[: len(WAVES)] - expected).max() <= 2e-5
    assert np.abs(expected - expected[0]).max() > 0.01, "vectors that are all alike would prove nothing"
    assert np.abs(sounds[len(WAVES)] - sounds[0]).max() <= 1e-5, "both channels alike are one channel"
    cosine = sounds[-1] @ sounds[0] / np.linalg.norm(sounds[-1]) / np.linalg.norm(sounds[0])
    assert cosine > 0.999, "the same sound at twice the rate"
