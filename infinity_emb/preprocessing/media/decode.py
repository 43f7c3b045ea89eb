"""Decode files into the input of a model's processor: RGB images, and mono samples at the model's rate.

Decoders check sizes in the header first, so that a small file cannot fill the memory. Pillow, soundfile and
soxr are imported on demand.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
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
from infinity_emb.preprocessing.media.image_structure import check_scans, check_segments

if TYPE_CHECKING:
    from PIL.Image import Image
    from soundfile import SoundFile  # type: ignore[import-untyped]  # ships no types

Samples = npt.NDArray[np.float32]

# Excluded on purpose: EPS, which Pillow passes to Ghostscript, and container formats.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MIN_SIDE_PIXELS = 3
MAX_PIXELS = 64_000_000
"""Above the 50 megapixels of a phone's camera; 256 MB once decoded."""

MAX_SIDE_PIXELS = 65_535
"""The limit of JPEG; a TIFF file may store each row separately, which is slow to decode."""

MAX_SLOW_BYTES = 2**20

MAX_SECONDS = 300.0
MAX_CHANNELS = 16
# A rate outside this range is more likely forged than real; ultrasound recorders reach the upper end.
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 384_000
_SAMPLES_PER_BLOCK = 2**20


def no_limit(amount: float) -> None:
    """Accept any amount."""


def decode_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, reserve: Callable[[float], None] = no_limit
) -> Image:
    """Decode an image as transformers' `load_image` does: upright, RGB, the first frame of an animation.

    data: a whole file in one of IMAGE_FORMATS.
    max_pixels: maximum of width times height, checked before decoding. Pillow's own limit, twice
        `PIL.Image.MAX_IMAGE_PIXELS`, applies as well.
    reserve: called with the number of pixels before decoding; raises a ServingError when it is too large.

    Raises: ImageCorruption for a broken, unknown, too small or too large image; ModelNotDeployedError when
    Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as exc:
        raise _missing_extra("images", "vision") from exc
    try:
        Image.init()  # Pillow may be built without AVIF
        formats = [name for name in IMAGE_FORMATS if name in Image.OPEN]
        num_scans = check_segments(data)
        with Image.open(io.BytesIO(data), formats=formats) as image:
            check_image_size(*image.size, max_pixels=max_pixels)
            check_scans(num_scans, image.width * image.height)
            _check_decoder([tile[0] for tile in image.tile if tile[0] in Image.DECODERS], len(data))
            reserve(image.width * image.height)
            return ImageOps.exif_transpose(image).convert("RGB")
    except ServingError:
        raise
    # Pillow raises many types for damaged files, from SyntaxError to struct.error.
    except Exception as exc:
        reason = "the format is unknown" if "cannot identify" in str(exc) else _describe_error(exc)
        raise ImageCorruption(
            f"cannot be read as an image: {reason}; send a whole file, {', '.join(IMAGE_FORMATS)}"
        ) from exc


def decode_audio(
    data: bytes,
    *,
    sampling_rate: int,
    max_seconds: float = MAX_SECONDS,
    reserve: Callable[[float], None] = no_limit,
) -> Samples:
    """Decode audio to one channel at the sampling rate of a model.

    data: a whole file in a format of libsndfile: WAV, FLAC, OGG, MP3, AIFF and others. Of a truncated file,
        the part that libsndfile can decode is used.
    sampling_rate: of the result, in Hz. max_seconds: maximum duration, checked before decoding.
    reserve: called with the duration before decoding; raises a ServingError when it is too long.

    Returns (N,) float32 in about -1..1, N > 0: the mean of the channels, resampled by soxr at HQ.

    Raises: AudioCorruption for broken, unknown, empty or too long audio, and for samples that are not finite;
    ModelNotDeployedError when soundfile or soxr is not installed.
    """
    try:
        import soundfile
        import soxr  # type: ignore[import-untyped]  # ships no types
    except (ImportError, OSError) as exc:  # OSError: libsndfile is missing
        raise _missing_extra("audio", "audio") from exc
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_sound_header(file.frames, file.samplerate, file.channels, max_seconds)
            reserve(file.frames / file.samplerate)
            rate, mono = file.samplerate, _read_mono(file)
        samples: Samples = mono
        if rate != sampling_rate:
            samples = soxr.resample(mono, rate, sampling_rate, quality="HQ")  # (N,) float32
    except ServingError:
        raise
    # As with images; arithmetic on the numbers of a forged header may fail, too.
    except Exception as exc:
        # libsndfile's own text, without soundfile's repr of the buffer.
        reason = getattr(exc, "error_string", None) or _describe_error(exc)
        raise AudioCorruption(
            f"cannot be read as audio: {reason.rstrip('.')}; send a whole WAV, FLAC, OGG or MP3 file"
        ) from exc
    _check_samples(samples)
    return samples


def check_image_size(width: int, height: int, *, max_pixels: int = MAX_PIXELS) -> None:
    """Raise ImageCorruption for an image that is too small or too large."""
    if min(width, height) < MIN_SIDE_PIXELS:
        # The text of infinity_emb 0.0.77.
        raise ImageCorruption(
            f"An image in your request is too small for processing {(width, height)}."
            f" Minimum required size is {MIN_SIDE_PIXELS}x{MIN_SIDE_PIXELS}."
        )
    if max(width, height) > MAX_SIDE_PIXELS:
        raise ImageCorruption(
            f"has {width} x {height} pixels, the limit is {MAX_SIDE_PIXELS} a side; send a smaller version"
        )
    if width * height > max_pixels:
        raise ImageCorruption(
            f"has {width} x {height} pixels, {width * height} in all, the limit is {max_pixels};"
            " send a smaller version, models scale images down anyway"
        )


def _check_decoder(slow_decoders: Sequence[str], num_bytes: int) -> None:
    """Raise ImageCorruption for a large file that Pillow decodes in Python, at a megabyte a second."""
    if slow_decoders and num_bytes > MAX_SLOW_BYTES:
        raise ImageCorruption(
            f"has {num_bytes} bytes in an encoding that is slow to decode ({slow_decoders[0]}), the limit is"
            f" {MAX_SLOW_BYTES}; send it as PNG or JPEG"
        )


def _check_sound_header(num_frames: int, rate_hz: int, num_channels: int, max_seconds: float) -> None:
    if num_frames <= 0:
        raise AudioCorruption("is empty: no samples")
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise AudioCorruption(
            f"has a sampling rate of {rate_hz} Hz; resample it to between {MIN_RATE_HZ} and {MAX_RATE_HZ} Hz"
        )
    if num_channels > MAX_CHANNELS:
        raise AudioCorruption(f"has {num_channels} channels, the limit is {MAX_CHANNELS}; mix it down to one")
    if num_frames > max_seconds * rate_hz:
        raise AudioCorruption(f"is {num_frames / rate_hz:.1f} s long, the limit is {max_seconds:g} s; cut it")


def _read_mono(file: SoundFile) -> Samples:
    """Return the mean of the channels, read in blocks so that not all channels are in memory at once."""
    frames_per_block = _SAMPLES_PER_BLOCK // file.channels
    blocks = [np.zeros(0, dtype=np.float32)]
    while len(block := file.read(frames_per_block, dtype="float32", always_2d=True)):  # (frames, channels)
        blocks.append(block.mean(axis=1))  # (frames,)
    return np.concatenate(blocks)


def _check_samples(samples: Samples) -> None:
    if not len(samples):
        raise AudioCorruption("is too short: no samples after decoding")
    if not np.isfinite(samples).all():
        raise AudioCorruption("has samples that are NaN or infinite; export it again")


def _missing_extra(what: str, extra: str) -> ModelNotDeployedError:
    return ModelNotDeployedError(
        f"cannot be decoded: no decoder for {what} is installed; run pip install 'infinity-emb[{extra}]'"
    )


def _describe_error(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
