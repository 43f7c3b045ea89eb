"""Small files that claim to be large ones, and a program that decodes damaged files under a memory limit.

python -m tests.support.media_bombs <seed> <number of files>
"""

from __future__ import annotations

import faulthandler
import io
import random
import resource
import struct
import sys
import zlib
from collections.abc import Callable

import numpy as np
import soundfile  # type: ignore[import-untyped]  # ships no types
from PIL import Image

from infinity_emb.errors import BadInput
from infinity_emb.preprocessing.media.decode import decode_audio, decode_image

RATE_HZ = 16_000
MEMORY_BYTES = 2 * 2**30


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes, pixels: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", zlib.compress(pixels, 9))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + png_chunk(b"IEND", b"")


def gif(width: int, height: int) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return screen + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00;"


def webp(width: int, height: int) -> bytes:
    """Write an extended WebP, whose canvas has 24 bits a side for any image in it."""
    inner = encoded_image("WEBP")[12:]
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + size
    return b"RIFF" + struct.pack("<I", 4 + len(canvas) + len(inner)) + b"WEBP" + canvas + inner


def tiff(width: int, height: int, num_pages: int = 1) -> bytes:
    """Write pages that all point to the same ten bytes of pixels."""
    pages, start = b"", 8
    for page in range(num_pages):
        tags = [
            (256, 4, width),
            (257, 4, height),
            (258, 3, 8),
            (259, 3, 1),
            (262, 3, 1),
            (273, 4, 8),
            (278, 4, height),
        ]
        tags.append((279, 4, width * height % 2**32))
        size = 2 + 12 * len(tags) + 4
        following = 0 if page == num_pages - 1 else start + size
        entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
        pages += struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)
        start += size
    return b"II*\0" + struct.pack("<I", 8) + pages


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def encoded_image(format: str, size: int = 40, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format, **options)
    return stream.getvalue()


def encoded_sound(format: str, subtype: str, num_samples: int = 2000) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.sin(np.arange(num_samples) / 9), RATE_HZ, format=format, subtype=subtype)
    return stream.getvalue()


def lying_flac(num_samples: int) -> bytes:
    """Set the number of samples in STREAMINFO, 36 bits."""
    data = bytearray(encoded_sound("FLAC", "PCM_16"))
    data[21] = data[21] & 0xF0 | num_samples >> 32
    data[22:26] = struct.pack(">I", num_samples & 0xFFFFFFFF)
    return bytes(data)


def lying_wav(num_bytes: int) -> bytes:
    data = bytearray(encoded_sound("WAV", "PCM_16"))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", num_bytes)
    return bytes(data)


def lying_ogg(num_samples: int) -> bytes:
    """Set the position of the last sample in the last page, and correct its checksum."""
    data = bytearray(encoded_sound("OGG", "VORBIS"))
    at = data.rindex(b"OggS")
    data[at + 6 : at + 14] = struct.pack("<q", num_samples)
    data[at + 22 : at + 26] = bytes(4)
    data[at + 22 : at + 26] = struct.pack("<I", ogg_checksum(data[at:]))
    return bytes(data)


def ogg_checksum(page: bytes) -> int:
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ 0x04C11DB7 if checksum & 0x80000000 else checksum << 1) & 0xFFFFFFFF
    return checksum


ZEROS = zlib.compress(bytes(50_000_000), 9)  # 49 kB
IMAGE_BOMBS: dict[str, bytes] = {
    "PNG of 4 gigapixels": png(65_500, 65_500, pixels=bytes(10_000_000)),
    "PNG as large as may be said": png(2**31 - 1, 2**31 - 1),
    "PNG of one column": png(3, 2**31 - 1),
    "PNG with a text of zeros": png(40, 40, png_chunk(b"zTXt", b"a\0\0" + ZEROS)),
    "PNG with a colour profile of zeros": png(40, 40, png_chunk(b"iCCP", b"a\0\0" + ZEROS)),
    "PNG with an international text of zeros": png(40, 40, png_chunk(b"iTXt", b"a\0\1\0\0\0" + ZEROS)),
    "PNG with a hundred thousand texts": png(40, 40, *[png_chunk(b"tEXt", b"a\0b")] * 100_000),
    "GIF": gif(65_535, 65_535),
    "WebP": webp(2**24, 2**24),
    "TIFF": tiff(2**31, 2**31),
    "TIFF of many pages": tiff(8000, 7999, num_pages=20_000),
    "BMP": bmp(2**31 - 1, 2**31 - 1),
    "BMP upside down": bmp(2**31 - 1, -(2**31)),
    "PPM": b"P6 1000000000 1000000000 255\n" + bytes(99),
    "zip": b"PK\x03\x04" + bytes(26) + ZEROS,
    "gzip": b"\x1f\x8b\x08" + bytes(7) + ZEROS,
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="99999" height="99999"/>',
}
SOUND_BOMBS: dict[str, bytes] = {
    "FLAC that says 48 days": lying_flac(2**36 - 1),
    "zip": IMAGE_BOMBS["zip"],
}
# libsndfile looks at what there is.
LYING_SOUNDS: dict[str, bytes] = {
    "OGG that says 5000 years": lying_ogg(2**51),
    "OGG that ends before it begins": lying_ogg(-5),
    "WAV that says 4 GB": lying_wav(2**32 - 1),
}
IMAGES = {
    **{format: encoded_image(format) for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")},
    "TIFF in LZW": encoded_image("TIFF", compression="tiff_lzw"),
    "TIFF in deflate": encoded_image("TIFF", compression="tiff_adobe_deflate"),
    "TIFF in JPEG": encoded_image("TIFF", compression="jpeg"),
    "JPEG in passes": encoded_image("JPEG", progressive=True),
    "lossless WEBP": encoded_image("WEBP", lossless=True),
    "animated GIF": encoded_image("GIF", save_all=True, append_images=[Image.new("RGB", (40, 40))] * 3),
}
SOUNDS = {
    "WAV": encoded_sound("WAV", "PCM_16"),
    "WAV in ADPCM": encoded_sound("WAV", "MS_ADPCM"),
    "W64": encoded_sound("W64", "PCM_16"),
    "FLAC": encoded_sound("FLAC", "PCM_16"),
    "OGG": encoded_sound("OGG", "VORBIS"),
    "Opus": encoded_sound("OGG", "OPUS"),
    "MP3": encoded_sound("MP3", "MPEG_LAYER_III"),
    "AIFF": encoded_sound("AIFF", "PCM_16"),
    "AU": encoded_sound("AU", "PCM_16"),
    "CAF": encoded_sound("CAF", "PCM_16"),
    "CAF in ALAC": encoded_sound("CAF", "ALAC_16"),
    "VOC": encoded_sound("VOC", "PCM_16"),
}


def decode_as_image(data: bytes) -> object:
    return decode_image(data)


def decode_as_sound(data: bytes) -> object:
    return decode_audio(data, sampling_rate=RATE_HZ)


def damage(data: bytes, draw: random.Random) -> bytes:
    """Change bytes, mostly of the header; set numbers to extremes; cut, double or swap parts."""
    result = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        at = draw.randrange(min(len(result), draw.choice([64, 256, len(result)])))
        kind = draw.randrange(6)
        if kind < 2:
            result[at] = draw.randrange(256)
        elif kind == 2:
            extreme = draw.choice([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1])
            result[at : at + 4] = struct.pack(draw.choice("<>") + "I", extreme)
        elif kind == 3:
            del result[at : at + draw.randrange(1, 64)]
        elif kind == 4:
            result[at:at] = result[at : at + draw.randrange(1, 200)]
        else:
            result = result[: max(1, draw.randrange(len(result)))]
        if not result:
            return b""
    return bytes(result)


def hammer(seed: int, num_files: int) -> None:
    """Decode damaged files, each of which may be refused and may do nothing else."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    faulthandler.enable()
    draw = random.Random(seed)
    families: list[tuple[Callable[[bytes], object], list[bytes]]] = [
        (decode_as_image, [*IMAGES.values()]),
        (decode_as_sound, [*SOUNDS.values()]),
    ]
    num_decoded = 0
    for _ in range(num_files):
        decode, files = draw.choice(families)
        data = damage(draw.choice(files), draw)
        faulthandler.dump_traceback_later(20, exit=True)
        try:
            decode(data)
            num_decoded += 1
        except BadInput:
            pass
        finally:
            faulthandler.cancel_dump_traceback_later()
    sys.stdout.write(f"{num_decoded}\n")


if __name__ == "__main__":
    hammer(int(sys.argv[1]), int(sys.argv[2]))
