"""Embed images and audio."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from infinity_emb.errors import (
    AudioCorruption,
    BadInput,
    ImageCorruption,
    Overloaded,
)
from tests.support.event_loop import run
from tests.support.fake_engines import call, fake_engine, read_vector_lengths
from tests.support.media_files import make_data_uri, make_png, make_wav
from tests.support.recording_models import RecordingModels


def test_images_of_every_form_are_embedded() -> None:
    """A fake vector says how high an image is."""
    from PIL import Image

    images = [make_data_uri(make_png(5), "image/png"), make_png(7), Image.new("L", (4, 6)), make_png(7)]
    vectors, num_tokens = call(
        fake_engine("kind=embedder"), "image_embed", images=images, matryoshka_dim=None
    )

    assert read_vector_lengths(vectors) == [5, 7, 6, 7]
    assert num_tokens == 25
    [short] = call(fake_engine("kind=embedder"), "image_embed", images=[make_png(5)], matryoshka_dim=3)[0]
    assert short.shape == (3,)


def test_audio_of_every_form_is_embedded() -> None:
    """A fake vector says how many seconds a clip has, at the model's own rate, and one more."""
    audios = [make_data_uri(make_wav(1.5), "audio/wav"), make_wav(3.5, rate_hz=44_100)]
    vectors, num_tokens = call(fake_engine("kind=embedder"), "audio_embed", audios=audios)

    assert (read_vector_lengths(vectors), num_tokens) == ([2, 4], 6)


def test_late_interaction_models_return_an_array_per_image() -> None:
    [rows], _ = call(fake_engine("kind=multivector"), "image_embed", images=[make_png(5)])
    assert rows.shape == (5, 13)


def test_images_are_documents_in_the_default_dtype(models: RecordingModels) -> None:
    call(models.engine("kind=embedder"), "image_embed", images=[make_png(5)])
    [(_, options)] = models.encoded
    assert (options.task, options.outputs) == ("document", ("dense",))
    [vector], _ = call(
        fake_engine("kind=embedder", embedding_dtype="ubinary"), "image_embed", images=[make_png(5)]
    )
    assert vector.tolist() == [255, 248]


@pytest.mark.parametrize(
    ("task", "bad", "error"),
    [
        ("image_embed", {"images": [make_png(5), b"no image"]}, ImageCorruption),
        ("audio_embed", {"audios": [make_wav(1), b"no sound"]}, AudioCorruption),
        ("image_embed", {"images": [make_png(5), 5]}, BadInput),
        ("image_embed", {"images": [make_png(5), "data:image/png;base64,!"]}, BadInput),
        ("audio_embed", {"audios": [make_wav(1), "file:///etc/passwd"]}, BadInput),
    ],
)
def test_an_error_names_the_position_of_a_file(task: str, bad: dict[str, Any], error: type[BadInput]) -> None:
    async def main() -> None:
        async with fake_engine("kind=embedder") as engine:
            with pytest.raises(error, match=r"^input 1 ") as raised:
                await getattr(engine, task)(**bad)
            assert raised.value.position == 1
            assert engine.status().num_requests == 0

    run(main())


@pytest.mark.parametrize("images", ["https://example.com/image.png", b"bytes", None, 5])
def test_images_must_be_a_list(images: Any) -> None:
    with pytest.raises(BadInput, match="images must be a list"):
        call(fake_engine("kind=embedder"), "image_embed", images=images)


def test_images_are_admitted_before_they_are_fetched() -> None:
    async def main() -> None:
        async with fake_engine("kind=embedder", max_queue_items=3) as engine:
            first = asyncio.create_task(engine.image_embed(images=[make_png(5)] * 2))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await engine.image_embed(images=[make_png(5)] * 2)
            await first

    run(main())
