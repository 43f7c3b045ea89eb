from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import soundfile  # type: ignore[import-untyped]  # ships no types
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from infinity_emb.errors import AudioCorruption, BadInput, ImageCorruption, ModelNotDeployedError
from infinity_emb.preprocessing.media.decode import (
    IMAGE_FORMATS,
    MAX_CHANNELS,
    MAX_PIXELS,
    decode_audio,
    decode_image,
)

RATE_HZ = 16_000
fuzzed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def make_pixels(height: int = 13, width: int = 17, channels: int = 3) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encode_image(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def encode_sound(samples: npt.NDArray[np.generic], rate_hz: int, format: str, subtype: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format=format, subtype=subtype)
    return buffer.getvalue()


def make_sine(rate_hz: int, *, frequency_hz: float = 440.0, seconds: float = 1.0) -> npt.NDArray[np.float64]:
    return np.sin(2 * np.pi * frequency_hz * np.arange(round(rate_hz * seconds)) / rate_hz)


def png_with_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixel."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 1000) + b"IDAT"


# Images


def images() -> dict[str, bytes]:
    rgb = Image.fromarray(make_pixels())
    rgba = Image.fromarray(make_pixels(channels=4))
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: the camera was held upright
    frames = [Image.fromarray(make_pixels()).rotate(90 * turns) for turns in range(3)]
    return {
        **{format: encode_image(rgb, format) for format in IMAGE_FORMATS if format in Image.SAVE},
        "turned JPEG": encode_image(rgb, "JPEG", exif=turned),
        "turned PNG": encode_image(rgb, "PNG", exif=turned),
        "transparent PNG": encode_image(rgba, "PNG"),
        "transparent WEBP": encode_image(rgba, "WEBP", lossless=True),
        "grey PNG": encode_image(rgb.convert("L"), "PNG"),
        "palette PNG": encode_image(rgb.convert("P"), "PNG"),
        "black and white TIFF": encode_image(rgb.convert("1"), "TIFF"),
        "16 bit PNG": encode_image(Image.fromarray(make_pixels()[:, :, 0].astype(np.uint16) * 257), "PNG"),
        "CMYK JPEG": encode_image(rgb.convert("CMYK"), "JPEG"),
        "animated GIF": encode_image(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated WEBP": encode_image(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
    }


Image.init()
IMAGES = images()


@pytest.mark.model
@pytest.mark.parametrize("name", IMAGES)
def test_pixels_are_those_of_transformers(name: str) -> None:
    from transformers.image_utils import load_image

    expected = load_image(Image.open(io.BytesIO(IMAGES[name])))
    image = decode_image(IMAGES[name])
    assert (image.mode, image.size) == ("RGB", expected.size)
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_the_image_is_upright() -> None:
    assert decode_image(IMAGES["JPEG"]).size == (17, 13)
    assert decode_image(IMAGES["turned JPEG"]).size == (13, 17)


@pytest.mark.parametrize("size", [(1, 1), (2, 100), (100, 2)])
def test_an_image_below_3_by_3_is_refused_in_the_known_words(size: tuple[int, int]) -> None:
    with pytest.raises(ImageCorruption) as caught:
        decode_image(encode_image(Image.new("RGB", size), "PNG"))
    assert str(caught.value) == (
        f"An image in your request is too small for processing {size}. Minimum required size is 3x3."
    )


def test_3_by_3_is_enough() -> None:
    assert decode_image(encode_image(Image.new("RGB", (3, 3)), "PNG")).size == (3, 3)


@pytest.mark.parametrize("size", [(8001, 8000), (3, 30_000_000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header_before_pixels_are_decoded(size: tuple[int, int]) -> None:
    """The file has no pixels at all: whoever tried to decode them would call it truncated."""
    with pytest.raises(ImageCorruption, match=r"pixels.* limit (is|of) \d+"):
        decode_image(png_with_header(*size))
    with pytest.raises(ImageCorruption, match="truncated"):
        decode_image(png_with_header(30, 30))


def test_the_pixel_limit_is_exact_and_says_what_to_do() -> None:
    data = encode_image(Image.new("L", (10, 7)), "PNG")
    assert decode_image(data, max_pixels=70).size == (10, 7)
    with pytest.raises(ImageCorruption, match=r"10 x 7 pixels, 70 in all, the limit is 69; send a smaller"):
        decode_image(data, max_pixels=69)
    assert (Image.MAX_IMAGE_PIXELS or 0) > MAX_PIXELS  # ours answers first


@pytest.mark.parametrize("format", sorted(IMAGES.keys() & {"PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF"}))
def test_half_an_image_is_refused(format: str) -> None:
    whole = encode_image(Image.fromarray(make_pixels(200, 200)), format)
    with pytest.raises(ImageCorruption, match="cannot be read as an image"):
        decode_image(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    "data", [b"", b"no image", b"%PDF-1.4", b"<svg xmlns='http://www.w3.org/2000/svg'/>"]
)
def test_what_is_no_image_is_refused_with_the_known_formats(data: bytes) -> None:
    with pytest.raises(ImageCorruption) as caught:
        decode_image(data)
    assert caught.value.reason == (
        "cannot be read as an image: the format is unknown;"
        " send a whole file, PNG, JPEG, WEBP, GIF, BMP, TIFF, PPM, AVIF"
    )


def test_postscript_never_reaches_ghostscript(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a stranger's program was about to run")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", fail)
    postscript = encode_image(Image.new("RGB", (20, 20)), "EPS")
    assert Image.open(io.BytesIO(postscript)).format == "EPS"
    with pytest.raises(ImageCorruption, match="the format is unknown"):
        decode_image(postscript)


# Sounds


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("AIFF", "PCM_16")],
)
@pytest.mark.parametrize("num_channels", [1, 2, 6])
def test_channels_are_averaged_and_nothing_else_is_done_at_the_rate_of_the_file(
    format: str, subtype: str, num_channels: int
) -> None:
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, (1000, num_channels)).astype(np.int16)
    exact = samples / 2**15  # also in float32, and so are sums of six of them
    data = encode_sound(exact if subtype == "FLOAT" else samples, RATE_HZ, format, subtype)

    decoded = decode_audio(data, sampling_rate=RATE_HZ)
    assert (decoded.dtype, decoded.shape) == (np.float32, (1000,))
    assert np.array_equal(decoded, (exact.sum(axis=1) / num_channels).astype(np.float32))


def test_blocks_are_put_together_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.arange(1000, dtype=np.int16).reshape(500, 2)
    data = encode_sound(samples, RATE_HZ, "WAV", "PCM_16")
    monkeypatch.setattr("infinity_emb.preprocessing.media.decode._SAMPLES_PER_BLOCK", 14)
    assert np.array_equal(decode_audio(data, sampling_rate=RATE_HZ), samples.mean(axis=1) / 2**15)


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("target_hz", [16_000, 48_000])
def test_a_sine_stays_the_same_sine_at_another_rate(rate_hz: int, target_hz: int) -> None:
    data = encode_sound(make_sine(rate_hz), rate_hz, "WAV", "FLOAT")
    decoded = decode_audio(data, sampling_rate=target_hz)

    assert abs(len(decoded) - target_hz) <= 1
    expected = make_sine(target_hz)[: len(decoded)]
    inside = slice(target_hz // 20, -target_hz // 20)  # a filter has not settled at the ends
    assert np.abs(decoded[inside] - expected[inside]).max() < 1e-3
    spectrum = np.abs(np.fft.rfft(decoded))
    assert np.argmax(spectrum) * target_hz / len(decoded) == pytest.approx(440, abs=1)
    assert np.sqrt(np.mean(decoded[inside] ** 2)) == pytest.approx(np.sqrt(0.5), abs=1e-3)


def test_what_the_target_rate_cannot_hold_is_filtered_out() -> None:
    """Without a filter, 10 kHz sampled at 16 kHz would be heard as 6 kHz."""
    data = encode_sound(make_sine(48_000, frequency_hz=10_000), 48_000, "WAV", "FLOAT")
    decoded = decode_audio(data, sampling_rate=RATE_HZ)[800:-800]
    assert np.abs(decoded).max() < 1e-3


@pytest.mark.parametrize(("format", "subtype"), [("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS")])
def test_lossy_formats_are_read_too(format: str, subtype: str) -> None:
    data = encode_sound(make_sine(48_000), 48_000, format, subtype)
    decoded = decode_audio(data, sampling_rate=RATE_HZ)
    assert len(decoded) == pytest.approx(RATE_HZ, rel=0.05)
    assert np.sqrt(np.mean(decoded**2)) == pytest.approx(np.sqrt(0.5), rel=0.05)


def wav_header(*, rate_hz: int, num_channels: int, num_bytes: int) -> bytes:
    """An 8 bit WAV without its samples."""
    sizes = (16, 1, num_channels, rate_hz, rate_hz * num_channels, num_channels, 8)
    format_chunk = b"fmt " + struct.pack("<IHHIIHH", *sizes)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + num_bytes)
        + b"WAVE"
        + format_chunk
        + b"data"
        + struct.pack("<I", num_bytes)
    )


def wav(*, rate_hz: int = RATE_HZ, num_channels: int = 1, num_bytes: int = 1600) -> bytes:
    header = wav_header(rate_hz=rate_hz, num_channels=num_channels, num_bytes=num_bytes)
    return header + bytes([128]) * num_bytes


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (wav(num_bytes=0), "is empty: no samples"),
        (wav(rate_hz=10), "has a sampling rate of 10 Hz; resample it to between 1000 and 384000 Hz"),
        (wav(rate_hz=10**6), "has a sampling rate of 1000000 Hz; resample it to between"),
        (wav(num_channels=17, num_bytes=1700), "has 17 channels, the limit is 16; mix it down to one"),
        (wav(num_bytes=RATE_HZ + 1), "is 1.0 s long, the limit is 1 s; cut it"),
        (b"", "cannot be read as audio: Format not recognised; send a whole WAV, FLAC, OGG or MP3 file"),
        (b"no sound at all", "cannot be read as audio: Format not recognised; send"),
        (IMAGES["PNG"], "cannot be read as audio: Format not recognised; send"),
        (wav(rate_hz=384_000, num_bytes=2), "is too short: no samples after decoding"),
    ],
)
def test_a_sound_that_cannot_be_used_is_refused_with_the_limit(data: bytes, reason: str) -> None:
    with pytest.raises(AudioCorruption) as caught:
        decode_audio(data, sampling_rate=RATE_HZ, max_seconds=1)
    assert caught.value.reason.startswith(reason)


def test_limits_are_inclusive() -> None:
    data = wav(num_channels=MAX_CHANNELS, num_bytes=RATE_HZ * MAX_CHANNELS)
    assert decode_audio(data, sampling_rate=RATE_HZ, max_seconds=1).tolist() == [0] * RATE_HZ


def test_a_long_sound_is_refused_before_a_sample_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("samples were read")

    data = encode_sound(np.zeros(RATE_HZ * 600), RATE_HZ, "FLAC", "PCM_16")
    assert len(data) < 100_000  # silence is small
    monkeypatch.setattr(soundfile.SoundFile, "read", fail)
    with pytest.raises(AudioCorruption, match=r"is 600\.0 s long, the limit is 300 s"):
        decode_audio(data, sampling_rate=RATE_HZ)


def test_a_sound_whose_decoder_fails_in_the_middle_is_refused() -> None:
    data = encode_sound(np.random.default_rng(0).uniform(-1, 1, 20_000), RATE_HZ, "FLAC", "PCM_16")
    with pytest.raises(AudioCorruption, match=r"cannot be read as audio: .*flac"):
        decode_audio(data[: len(data) // 2], sampling_rate=RATE_HZ)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate_hz", [RATE_HZ, 48_000])
def test_samples_that_are_not_finite_are_refused(value: float, rate_hz: int) -> None:
    samples = np.zeros(1000)
    samples[500] = value
    with pytest.raises(AudioCorruption, match="samples that are NaN or infinite"):
        decode_audio(encode_sound(samples, rate_hz, "WAV", "FLOAT"), sampling_rate=RATE_HZ)


# Both


def decode_as_audio(data: bytes) -> object:
    return decode_audio(data, sampling_rate=RATE_HZ)


SOUNDS = {
    "WAV": encode_sound(make_sine(8000, seconds=0.05), 8000, "WAV", "PCM_16"),
    "float WAV": encode_sound(make_sine(8000, seconds=0.05), 8000, "WAV", "FLOAT"),
    "FLAC": encode_sound(make_sine(8000, seconds=0.05), 8000, "FLAC", "PCM_16"),
    "OGG": encode_sound(make_sine(8000, seconds=0.05), 8000, "OGG", "VORBIS"),
    "MP3": encode_sound(make_sine(8000, seconds=0.05), 8000, "MP3", "MPEG_LAYER_III"),
}


@st.composite
def damaged(draw: st.DrawFn, files: dict[str, bytes]) -> bytes:
    """A real file with some bytes changed and perhaps its end cut off; changes are mostly in the header."""
    data = bytearray(files[draw(st.sampled_from(sorted(files)))])
    for _ in range(draw(st.integers(0, 6))):
        end = draw(st.sampled_from([64, len(data)]))
        data[draw(st.integers(0, min(end, len(data)) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@pytest.mark.parametrize(
    ("decode", "error"), [(decode_image, ImageCorruption), (decode_as_audio, AudioCorruption)]
)
@fuzzed
@given(data=st.one_of(damaged(IMAGES), damaged(SOUNDS), st.binary(max_size=300)))
def test_damaged_and_random_bytes_are_decoded_or_refused(
    decode: Callable[[bytes], object], error: type[BadInput], data: bytes
) -> None:
    reason = ""
    try:
        decode(data)
    except error as caught:
        reason = caught.reason
    assert "\n" not in reason
    assert " at 0x" not in reason


@pytest.mark.parametrize("decode", [decode_image, decode_as_audio])
@pytest.mark.parametrize(("missing", "extra"), [("PIL", "vision"), ("soundfile", "audio"), ("soxr", "audio")])
def test_a_missing_library_is_named_by_its_extra(
    decode: Callable[[bytes], object], missing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    needs_it = (extra == "vision") == (decode is decode_image)
    data = IMAGES["PNG"] if decode is decode_image else SOUNDS["WAV"]
    if not needs_it:
        decode(data)
        return
    with pytest.raises(ModelNotDeployedError, match=rf"pip install 'infinity-emb\[{extra}\]'"):
        decode(data)
