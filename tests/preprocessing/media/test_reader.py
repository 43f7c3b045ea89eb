from __future__ import annotations

import asyncio
import base64
import gc
import io
import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]  # ships no types
from PIL import Image

from infinity_emb.config.limits import MediaLimits
from infinity_emb.errors import AudioCorruption, BadInput, ImageCorruption, Overloaded
from infinity_emb.items import AudioInput, ImageInput
from infinity_emb.preprocessing.media.budget import RequestBudget, SharedBudget
from infinity_emb.preprocessing.media.reader import MediaReader
from tests.support.event_loop import run
from tests.support.media_workers import InProcessWorkers

RATE_HZ = 16_000


def noise(height: int = 6, width: int = 9, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, channels), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def wav(samples: np.ndarray, rate_hz: int = RATE_HZ) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate_hz, format="WAV", subtype="FLOAT")
    return stream.getvalue()


def data_uri(content: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"


async def images_of(reader: MediaReader, sources: Any, run_on_thread: Any) -> list[ImageInput]:
    async with reader.images(sources, InProcessWorkers(run_on_thread)) as pictures:
        return pictures


async def clips_of(reader: MediaReader, sources: Any, run_on_thread: Any) -> list[AudioInput]:
    async with reader.clips(sources, InProcessWorkers(run_on_thread)) as clips:
        return clips


def read_images(*sources: Any, reader: MediaReader | None = None) -> list[ImageInput]:
    return run(images_of((reader or MediaReader(None)), sources, asyncio.to_thread))


def read_clips(*sources: Any, reader: MediaReader | None = None) -> list[AudioInput]:
    return run(clips_of(reader or MediaReader(RATE_HZ), sources, asyncio.to_thread))


def test_an_image_has_the_same_pixels_however_it_comes() -> None:
    pixels = noise()
    content = png(pixels)
    pictures = read_images(
        content, data_uri(content), Image.open(io.BytesIO(content)), Image.fromarray(pixels)
    )

    for picture in pictures:
        assert picture.pixels.dtype == np.uint8
        assert np.array_equal(picture.pixels, pixels)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "1", "P", "LA", "I"])
def test_an_image_of_any_mode_becomes_rgb(mode: str) -> None:
    image = Image.fromarray(noise()).convert(mode)
    [picture] = read_images(image)
    assert np.array_equal(picture.pixels, np.asarray(image.convert("RGB")))


def test_a_clip_has_the_samples_of_its_file_at_the_model_s_rate() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 1000).astype(np.float32)
    first, second = read_clips(wav(samples), data_uri(wav(np.repeat(samples, 2), 2 * RATE_HZ)))

    assert first.samples.dtype == np.float32
    assert np.array_equal(first.samples, samples)
    assert len(second.samples) == pytest.approx(1000, abs=2)


def test_inputs_come_in_order_however_long_each_takes() -> None:
    """The first is decoded last."""

    async def main() -> list[ImageInput]:
        waiting: list[asyncio.Event] = []

        async def last_comes_first(function: Callable[[], Any]) -> Any:
            mine = asyncio.Event()
            waiting.append(mine)
            if len(waiting) == 3:
                waiting[-1].set()
            await mine.wait()
            waiting.remove(mine)
            if waiting:
                waiting[-1].set()
            return function()

        sources = [png(noise(height)) for height in (3, 4, 5)]
        return await images_of(MediaReader(None), sources, last_comes_first)

    assert [len(picture.pixels) for picture in run(main())] == [3, 4, 5]


def test_only_addresses_need_a_slot_for_downloads() -> None:
    """Whoever sent an image in the request waited for the downloads of others."""
    workers = InProcessWorkers()

    async def main() -> None:
        reader = MediaReader(None)
        async with reader.images([png(noise()), data_uri(png(noise())), Image.new("1", (5, 5))], workers):
            assert workers.num_fetching == 0
        with pytest.raises(BadInput, match="not on the public internet"):
            async with reader.images(["http://127.0.0.1/image.png"], workers):
                pass
        assert workers.num_fetching == 1

    run(main())


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (b"no image", ImageCorruption, "the format is unknown"),
        (png(noise())[:60], ImageCorruption, "cannot be read as an image"),
        (5, BadInput, "is int; give a URL"),
        (None, BadInput, "is NoneType; give a URL"),
        ("no address", BadInput, "send an http"),
        ("data:image/png;base64,!", BadInput, "malformed base64"),
        ("file:///etc/passwd", BadInput, "send an http"),
        ("http://127.0.0.1/image.png", BadInput, "not on the public internet"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(source: Any, error: type[BadInput], words: str) -> None:
    fine = png(noise())
    with pytest.raises(error, match=f"^input 2 .*{words}") as raised:
        read_images(fine, fine, source, fine)
    assert raised.value.position == 2


def test_a_pil_image_of_a_file_that_is_cut_off_is_refused_too() -> None:
    """Pillow opens it, and fails with an OSError when its pixels are asked for."""
    content = png(noise(200, 200))
    image = Image.open(io.BytesIO(content[: len(content) // 2]))
    with pytest.raises(ImageCorruption, match=r"^input 1 cannot be read as an image: .*truncated"):
        read_images(png(noise()), image)


def test_a_sound_that_cannot_be_read_is_named() -> None:
    with pytest.raises(AudioCorruption, match=r"^input 1 cannot be read as audio"):
        read_clips(wav(np.zeros(9)), b"no sound")


@pytest.mark.parametrize("as_pil", [False, True])
def test_the_images_of_a_request_have_a_limit_in_all(as_pil: bool) -> None:
    """A body of plain-coloured PNGs was tens of gigabytes once decoded."""
    reader = MediaReader(None, max_request_pixels=4 * 54)
    image: Any = Image.fromarray(noise()) if as_pil else png(noise())

    assert len(read_images(*[image] * 4, reader=reader)) == 4
    with pytest.raises(BadInput, match=r"over its limit of 216 pixels in all; send fewer") as raised:
        read_images(*[image] * 5, reader=reader)
    assert raised.value.position is not None


def test_what_is_over_the_limit_of_a_request_is_not_decoded() -> None:
    """The files have no whole image: whoever decoded them would call them broken."""
    reader = MediaReader(None, max_request_pixels=53)
    content = png(noise())[:60]
    for source in (content, Image.open(io.BytesIO(content))):
        with pytest.raises(BadInput, match=r"^input 0 brings this request over"):
            read_images(source, reader=reader)


def test_the_limits_of_a_single_image_hold_for_pil_images_too() -> None:
    with pytest.raises(ImageCorruption, match=r"^input 0 has 8001 x 8000 pixels"):
        read_images(Image.new("1", (8001, 8000)))
    with pytest.raises(ImageCorruption, match="too small for processing"):
        read_images(Image.new("1", (2, 9)))


def test_the_sounds_of_a_request_have_a_limit_in_all() -> None:
    reader = MediaReader(RATE_HZ, max_request_seconds=2)
    content = wav(np.zeros(RATE_HZ // 2))

    assert len(read_clips(*[content] * 4, reader=reader)) == 4
    with pytest.raises(BadInput, match=r"over its limit of 2 seconds in all; send fewer"):
        read_clips(*[content] * 5, reader=reader)


def test_of_several_the_first_in_the_request_is_blamed_and_nothing_is_said_of_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """asyncio logged that the others' exceptions were never retrieved."""
    with caplog.at_level(logging.WARNING), pytest.raises(BadInput, match=r"^input 1 "):
        read_images(png(noise()), b"bad", 5, b"worse")
    gc.collect()
    assert caplog.records == []


def test_after_an_error_the_others_are_given_up_before_the_request_ends() -> None:
    ended: list[str] = []

    async def never(function: Callable[[], Any]) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("given up")

    async def main() -> None:
        with pytest.raises(BadInput, match="input 0"):
            await images_of(MediaReader(None), [5, png(noise()), png(noise())], never)
        assert ended == ["given up"] * 2
        assert len(asyncio.all_tasks()) == 2, "this one and the one that waits for it"

    run(main())


def test_a_request_that_is_cancelled_takes_its_inputs_with_it() -> None:
    async def main() -> None:
        is_full = asyncio.Event()
        num_started, num_ended = 0, 0

        async def never(function: Callable[[], Any]) -> Any:
            nonlocal num_started, num_ended
            num_started += 1
            if num_started == 20:
                is_full.set()
            try:
                await asyncio.Event().wait()
            finally:
                num_ended += 1

        reader = MediaReader(None)
        request = asyncio.create_task(images_of(reader, [png(noise())] * 20, never))
        await is_full.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert num_started == num_ended == 20
        assert len(await images_of(reader, [png(noise())] * 20, asyncio.to_thread)) == 20

    run(main())


def test_nothing_is_decoded_on_the_event_loop() -> None:
    threads: list[bool] = []

    async def on_thread(function: Callable[[], Any]) -> Any:
        def noted() -> Any:
            threads.append(threading.current_thread() is threading.main_thread())
            return function()

        return await asyncio.to_thread(noted)

    run(images_of(MediaReader(None), [png(noise()), Image.fromarray(noise())], on_thread))
    run(clips_of(MediaReader(RATE_HZ), [wav(np.zeros(9))], on_thread))
    assert threads == [False] * 3


def test_what_all_requests_hold_has_a_limit_until_they_are_computed() -> None:
    """One image each is no reason to refuse any of them; all together fill the memory."""

    async def main() -> None:
        reader = MediaReader(None, MediaLimits(max_queue_pixels=2 * 54))
        sources = [png(noise())]
        workers = InProcessWorkers()
        async with reader.images(sources, workers), reader.images(sources, workers):
            with pytest.raises(Overloaded, match=r"media queue full \(108 of 108 pixels\);"):
                await images_of(reader, sources, asyncio.to_thread)
        for _ in range(3):
            assert len(await images_of(reader, sources * 2, asyncio.to_thread)) == 2

    run(main())


def test_the_sounds_of_all_requests_have_a_limit() -> None:
    async def main() -> None:
        reader = MediaReader(RATE_HZ, MediaLimits(max_queue_audio_s=1))
        half = [wav(np.zeros(RATE_HZ // 2))]
        workers = InProcessWorkers()
        async with reader.clips(half, workers), reader.clips(half, workers):
            with pytest.raises(Overloaded, match=r"media queue full \(1 of 1 seconds\)"):
                await clips_of(reader, half, asyncio.to_thread)
        assert len(await clips_of(reader, half * 2, asyncio.to_thread)) == 2

    run(main())


def test_a_request_that_will_never_have_room_is_refused_for_good() -> None:
    with pytest.raises(BadInput, match=r"over its limit of 53 pixels in all"):
        read_images(png(noise()), reader=MediaReader(None, MediaLimits(max_queue_pixels=53)))


@pytest.mark.parametrize("end", ["error", "cancelled"])
def test_a_request_that_fails_gives_its_room_back(end: str) -> None:
    async def main() -> None:
        reader = MediaReader(None, MediaLimits(max_queue_pixels=2 * 54))
        decoded = asyncio.Event()

        async def decode_and_wait(function: Callable[[], Any]) -> Any:
            result = await asyncio.to_thread(function)
            decoded.set()
            if end == "cancelled":
                await asyncio.Event().wait()
            return result

        bad = [] if end == "cancelled" else [b"no image"]
        for _ in range(3):
            decoded.clear()
            request = asyncio.create_task(images_of(reader, [png(noise()), *bad], decode_and_wait))
            await decoded.wait()
            request.cancel()
            await asyncio.wait([request])
        assert len(await images_of(reader, [png(noise())] * 2, asyncio.to_thread)) == 2

    run(main())


def test_a_thread_that_comes_after_its_request_has_ended_takes_no_room() -> None:
    """Nobody would give it back."""
    shared = SharedBudget(100, "pixels")
    budget = RequestBudget(100, shared, "a")
    budget.reserve(60)
    budget.close()
    with pytest.raises(BadInput, match="has ended"):
        budget.reserve(60)
    shared.reserve("a", 100)
