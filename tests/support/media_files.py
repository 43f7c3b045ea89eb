"""Make small image and audio files."""

from __future__ import annotations

import base64
import io

import numpy as np


def make_png(height: int, width: int = 9) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def make_wav(duration_s: float, rate_hz: int = 8000) -> bytes:
    import soundfile  # type: ignore[import-untyped]  # ships no types

    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(int(duration_s * rate_hz)), rate_hz, format="WAV")
    return stream.getvalue()


def make_data_uri(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
