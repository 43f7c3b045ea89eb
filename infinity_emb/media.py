"""Encoded bytes → what a model's processor takes: an RGB image, or one channel of samples at one rate.

Each decoder reads the header first and refuses what would be too large decoded, so that a small file cannot
fill the memory. Knows nothing of URLs, models or HTTP: where bytes come from is media_sources.py. Pillow,
soundfile and soxr are imported on demand.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infinity_emb.errors import (
    AudioCorruption,
    ImageCorruption,
    ModelNotDeployedError,
    ServingError,
    one_line,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from soundfile import SoundFile  # type: ignore[import-untyped]  # ships no types

Samples = npt.NDArray[np.float32]

# Left out on purpose: EPS, which Pillow hands to Ghostscript, and formats that hold other files inside.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MIN_SIDE_PIXELS = 3
MAX_PIXELS = 64_000_000
"""Above the 50 megapixels of a phone's camera; 256 MB once decoded."""

MAX_SECONDS = 300.0
MAX_CHANNELS = 16
# Outside of this range a header is more likely forged than right; ultrasound recorders reach the upper end.
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 384_000
_SAMPLES_PER_BLOCK = 2**20


def take_any(amount: float) -> None:
    """The `claim` of who has no limit for several together."""


def decode_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, claim: Callable[[float], None] = take_any
) -> Image:
    """Decode a picture as transformers' `load_image` does: upright, RGB, the first frame of an animation.

    data: a whole file in one of IMAGE_FORMATS.
    max_pixels: width times height, checked before any pixel is decoded. Pillow has a limit of its own,
    twice `PIL.Image.MAX_IMAGE_PIXELS`, that this cannot raise.
    claim: told the number of pixels before any is decoded; raises a ServingError where that is too much.

    Raises: ImageCorruption for a broken, unknown, too small or too large picture; ModelNotDeployedError where
    Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as exc:
        raise _missing_extra("images", "vision") from exc
    try:
        Image.init()  # AVIF is a format only where Pillow was built with it
        formats = [name for name in IMAGE_FORMATS if name in Image.OPEN]
        with Image.open(io.BytesIO(data), formats=formats) as image:
            check_image_size(*image.size, max_pixels=max_pixels)
            claim(image.width * image.height)
            return ImageOps.exif_transpose(image).convert("RGB")
    except ServingError:
        raise
    # Damaged files make Pillow fail in a dozen ways, from SyntaxError to struct.error.
    except Exception as exc:
        reason = "the format is unknown" if "cannot identify" in str(exc) else _in_one_line(exc)
        raise ImageCorruption(
            f"cannot be read as an image: {reason}; send a whole file, {', '.join(IMAGE_FORMATS)}"
        ) from exc


def decode_audio(
    data: bytes,
    *,
    sampling_rate: int,
    max_seconds: float = MAX_SECONDS,
    claim: Callable[[float], None] = take_any,
) -> Samples:
    """Decode a sound to one channel at the rate that a model was trained on.

    data: a whole file of a format that libsndfile knows: WAV, FLAC, OGG, MP3, AIFF and others. Of a file
    that was cut short, what libsndfile can still decode is used.
    sampling_rate: Hz of the result. max_seconds: length, checked before any sample is decoded.
    claim: told the length in seconds before any sample is decoded; raises a ServingError where that is too
    much.

    Returns (N,) float32 in about -1..1, N > 0: the mean of the channels, resampled by soxr at HQ.

    Raises: AudioCorruption for a broken, unknown, empty or too long sound, or one with samples that are not
    finite; ModelNotDeployedError where soundfile or soxr is not installed.
    """
    try:
        import soundfile
        import soxr  # type: ignore[import-untyped]  # ships no types
    except (ImportError, OSError) as exc:  # OSError: the module is there, libsndfile is not
        raise _missing_extra("audio", "audio") from exc
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_sound_header(file.frames, file.samplerate, file.channels, max_seconds)
            claim(file.frames / file.samplerate)
            rate, mono = file.samplerate, _read_mono(file)
        samples: Samples = mono
        if rate != sampling_rate:
            samples = soxr.resample(mono, rate, sampling_rate, quality="HQ")  # (N,) float32
    except ServingError:
        raise
    # As with images: a forged header can make the numbers around libsndfile fail, not only libsndfile.
    except Exception as exc:
        reason = getattr(exc, "error_string", None) or _in_one_line(
            exc
        )  # less soundfile's repr of the buffer
        raise AudioCorruption(
            f"cannot be read as a sound: {reason.rstrip('.')}; send a whole WAV, FLAC, OGG or MP3 file"
        ) from exc
    _check_samples(samples)
    return samples


def check_image_size(width: int, height: int, *, max_pixels: int = MAX_PIXELS) -> None:
    """Raises ImageCorruption for an image that is too small or too large."""
    if min(width, height) < MIN_SIDE_PIXELS:
        # infinity_emb's users know this text.
        raise ImageCorruption(
            f"An image in your request is too small for processing {(width, height)}."
            f" Minimum required size is {MIN_SIDE_PIXELS}x{MIN_SIDE_PIXELS}."
        )
    if width * height > max_pixels:
        raise ImageCorruption(
            f"has {width} x {height} pixels, {width * height} in all, the limit is {max_pixels};"
            " send a smaller version, models scale images down anyway"
        )


def _check_sound_header(num_frames: int, rate_hz: int, num_channels: int, max_seconds: float) -> None:
    if num_frames <= 0:
        raise AudioCorruption("is a sound without a sample; send a sound that is not empty")
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise AudioCorruption(
            f"has a sampling rate of {rate_hz} Hz; resample it to between {MIN_RATE_HZ} and {MAX_RATE_HZ} Hz"
        )
    if num_channels > MAX_CHANNELS:
        raise AudioCorruption(f"has {num_channels} channels, the limit is {MAX_CHANNELS}; mix it down to one")
    if num_frames > max_seconds * rate_hz:
        raise AudioCorruption(
            f"is a sound of {num_frames / rate_hz:.1f} s, the limit is {max_seconds:g} s; cut it"
        )


def _read_mono(file: SoundFile) -> Samples:
    """All samples, averaged over the channels. Block by block: many channels never lie in memory at once."""
    frames_per_block = _SAMPLES_PER_BLOCK // file.channels
    blocks = [np.zeros(0, dtype=np.float32)]
    while len(block := file.read(frames_per_block, dtype="float32", always_2d=True)):  # (frames, channels)
        blocks.append(block.mean(axis=1))  # (frames,)
    return np.concatenate(blocks)


def _check_samples(samples: Samples) -> None:
    if not len(samples):
        raise AudioCorruption("is a sound without a sample once decoded; send a longer one")
    if not np.isfinite(samples).all():
        raise AudioCorruption("has samples that are NaN or infinite; export the sound again")


def _missing_extra(what: str, extra: str) -> ModelNotDeployedError:
    return ModelNotDeployedError(
        f"cannot be decoded: no decoder for {what} is installed; run pip install 'infinity-emb[{extra}]'"
    )


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
