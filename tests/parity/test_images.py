"""Image models against sentence-transformers: CLIP, SigLIP, ColPali, ColQwen2."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sentence_transformers import MultiVectorEncoder, SentenceTransformer

from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from infinity_emb.engine.results import EmbedOptions
from infinity_emb.errors import ImageCorruption, ModelNotDeployedError
from tests.support.small_models import random_texts
from tests.support.small_models.media import random_images, save_clip, save_colpali, save_colqwen, save_siglip

pytestmark = [
    pytest.mark.model,
    # transformers' default configurations name start and end tokens outside of these small vocabularies.
    pytest.mark.filterwarnings("ignore"),
]

TEXTS = random_texts(12, max_words=40)
IMAGES = random_images(6)


def engine_of(path: Path) -> AsyncEmbeddingEngine:
    return AsyncEmbeddingEngine.from_args(
        EngineArgs(model_name_or_path=str(path), device="cpu", model_warmup=False)
    )


def data_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("save", [save_clip, save_siglip])
def test_texts_and_images_of_two_towers_equal_sentence_transformers(
    save: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = save(tmp_path)
    engine = engine_of(path)
    reference = SentenceTransformer(str(path), device="cpu")

    async def embed() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        async with engine:
            (texts, _), (images, _), (uris, _) = await asyncio.gather(  # mixed in one queue
                engine.embed(TEXTS),
                engine.image_embed(images=IMAGES),
                engine.image_embed(images=[data_uri(image) for image in IMAGES]),
            )
            return np.array(texts), np.array(images), np.array(uris)

    texts, images, uris = asyncio.run(embed())

    assert engine.info.capabilities == ("embed", "rerank", "image_embed")
    expected = np.concatenate([reference.encode([text], show_progress_bar=False) for text in TEXTS])
    assert np.abs(texts - expected).max() <= 2e-5
    expected = np.concatenate([reference.encode([image], show_progress_bar=False) for image in IMAGES])
    assert np.abs(images - expected).max() <= 2e-5
    assert np.abs(images - uris).max() <= 1e-5
    assert np.abs(expected - expected[0]).max() > 0.01, "vectors that are all alike would prove nothing"


@pytest.mark.parametrize("save", [save_colpali, save_colqwen])
def test_patches_of_late_interaction_models_equal_sentence_transformers(
    save: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = save(tmp_path)
    engine = engine_of(path)
    reference = MultiVectorEncoder(str(path), device="cpu")

    async def embed() -> tuple[list[np.ndarray], list[np.ndarray]]:
        async with engine:
            (images, num_tokens), texts = await asyncio.gather(
                engine.image_embed(images=IMAGES), engine.encode(TEXTS, EmbedOptions(input_type="query"))
            )
            assert num_tokens == sum(map(len, images))
            return images, list(texts.multivector)

    images, texts = asyncio.run(embed())

    assert engine.info.kind == "multivector"
    for image, rows in zip(IMAGES, images, strict=True):
        expected = reference.encode_document([image], convert_to_numpy=True)[0]
        assert rows.shape == expected.shape
        assert np.abs(rows - expected).max() <= 2e-5
    for text, rows in zip(TEXTS, texts, strict=True):
        expected = reference.encode_query([text], convert_to_numpy=True)[0]
        assert np.abs(rows - expected).max() <= 2e-5


def test_a_text_that_names_an_image_stays_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sentence-transformers would open the file, and fetch the URL."""
    image_path = tmp_path / "secret.png"
    IMAGES[0].save(image_path)
    path = save_colpali(tmp_path / "model")
    engine = engine_of(path)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("a text was opened as an image"))

    async def embed() -> list[np.ndarray]:
        async with engine:
            vectors, _ = await engine.embed([str(image_path), "https://example.com/image.png", "[UNK]"])
            return vectors

    as_path, as_url, unknown = asyncio.run(embed())

    assert len(as_path) >= len(unknown), "no patch of an image among its rows"
    assert len(as_url) >= len(unknown)


def test_a_bad_image_is_named_and_a_text_model_takes_none(tmp_path: Path) -> None:
    engine = engine_of(save_clip(tmp_path))

    async def embed() -> None:
        async with engine:
            with pytest.raises(ImageCorruption, match="input 1 "):
                await engine.image_embed(images=[data_uri(IMAGES[0]), b"no image"])
            with pytest.raises(ModelNotDeployedError, match="audio_embed"):
                await engine.audio_embed(audios=[b""])

    asyncio.run(embed())
