"""Images of few bytes that take decoders minutes: too many scans, segments or chunks, and slow encodings."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from infinity_emb.errors import ImageCorruption
from infinity_emb.preprocessing.media.decode import MAX_SLOW_BYTES, check_image_size, decode_image
from infinity_emb.preprocessing.media.image_structure import (
    MAX_SCANNED_PIXELS,
    MAX_SEGMENTS,
    count_gif_blocks,
    count_jpeg_segments,
    count_png_chunks,
    count_tiff_strips,
)
from tests.support import media_bombs


def jpeg(width: int = 40, height: int = 30, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **options)
    return stream.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(content)) + content


def add_empty_scans(data: bytes, number: int) -> bytes:
    """Append scans of the last refinement bit, which change nothing, before the end of a progressive JPEG."""
    scan = segment(0xDA, b"\x01\x01\x00\x01\x01\x00") + b"\x00"
    return data[:-2] + scan * number + data[-2:]


def test_scans_are_counted_and_those_of_thumbnails_are_not() -> None:
    assert count_jpeg_segments(jpeg())[1] == 1
    progressive = jpeg(progressive=True)
    assert count_jpeg_segments(progressive)[1] == progressive.count(b"\xff\xda") > 5
    thumbnail = segment(0xE1, b"Exif\0\0" + jpeg())
    assert count_jpeg_segments(progressive[:2] + thumbnail + progressive[2:])[1] == progressive.count(
        b"\xff\xda"
    )
    assert count_jpeg_segments(jpeg() + jpeg())[1] == 1, "a file ends with its first image"
    assert count_jpeg_segments(jpeg(quality=100, restart_marker_blocks=1))[1] == 1


def test_progressive_images_as_cameras_make_them_are_decoded() -> None:
    assert decode_image(jpeg(progressive=True)).size == (40, 30)
    decode_image(add_empty_scans(jpeg(progressive=True), 50))


def test_thousands_of_scans_are_refused() -> None:
    """220 kB of them took 11 s."""
    bomb = add_empty_scans(jpeg(1000, 1000, progressive=True), MAX_SCANNED_PIXELS // 10**6)
    with pytest.raises(ImageCorruption, match=r"has 10\d\d scans of 1000000 pixels, the limit is"):
        decode_image(bomb)


@pytest.mark.parametrize(
    "segments", [segment(0xFE, b""), segment(0xE5, b"abc"), b"\xff\xff\xfe\0\2", b"\0", b"\xff", b"\xff\0"]
)
def test_a_jpeg_of_too_many_segments_is_refused(segments: bytes) -> None:
    head, rest = jpeg()[:20], jpeg()[20:]
    decode_image(head + segments * 1000 + rest)
    with pytest.raises(ImageCorruption, match=f"more than {MAX_SEGMENTS} segments"):
        decode_image(head + segments * MAX_SEGMENTS + rest)


def gif(blocks: bytes = b"") -> bytes:
    stream = io.BytesIO()
    image = Image.new("P", (40, 30))
    image.putpalette(bytes(range(256)) * 3)
    image.save(stream, "GIF", append_images=[Image.new("P", (40, 30), 1)], save_all=True)
    data = stream.getvalue()
    start = 13 + (6 << (data[10] & 7))
    return data[:start] + blocks + data[start:]


GIF_BLOCKS = {
    "a comment of many parts": b"!\xfe" + b"\1a" * MAX_SEGMENTS + b"\0",
    "many comments": b"!\xfe\1a\0" * MAX_SEGMENTS,
    "many empty extensions": b"!\xf9\0" * MAX_SEGMENTS,
    "an application's data": b"!\xff" + b"\1a" * MAX_SEGMENTS + b"\0",
    "no blocks": b"\1" * MAX_SEGMENTS,
}


@pytest.mark.parametrize("name", list(GIF_BLOCKS))
def test_a_gif_of_too_many_blocks_is_refused(name: str) -> None:
    assert decode_image(gif()).size == (40, 30)
    assert decode_image(gif(b"!\xfe" + b"\1a" * 1000 + b"\0")).size == (40, 30)
    with pytest.raises(ImageCorruption, match=f"more than {MAX_SEGMENTS} segments"):
        decode_image(gif(GIF_BLOCKS[name]))


def test_frames_behind_the_first_are_not_counted() -> None:
    data = gif()
    assert count_gif_blocks(data) < 10
    assert count_gif_blocks(data[:-1] + b"!\xfe\1a\0" * MAX_SEGMENTS + b";") < 10


@pytest.mark.parametrize("magic", [b"P6", b"P4", b"Pf"])
@pytest.mark.parametrize(
    "filler", [b"#" + b"a" * MAX_SEGMENTS + b"\n", b"#\n" * MAX_SEGMENTS, b" " * MAX_SEGMENTS]
)
def test_a_ppm_with_a_long_header_is_refused(magic: bytes, filler: bytes) -> None:
    last = {b"P6": b"255\n", b"P4": b"", b"Pf": b"-1.0\n"}[magic]
    fine = magic + b"\n# a comment\n40 # another\n 30\n" + last + bytes(5000)
    assert decode_image(fine).size == (40, 30)
    for header in (b"\n" + filler + b"40 30\n" + last, b"\n40" + filler + b" 30\n" + last):
        with pytest.raises(ImageCorruption, match=f"more than {MAX_SEGMENTS} segments"):
            decode_image(magic + header + bytes(5000))


def tiff(tags: list[tuple[int, int]], *, is_big: bool = False, num_entries: int | None = None) -> bytes:
    number = len(tags) if num_entries is None else num_entries
    if is_big:
        entries = b"".join(struct.pack("<HHQQ", tag, 4, count, 16) for tag, count in tags)
        return b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, number) + entries
    entries = b"".join(struct.pack(">HHLL", tag, 4, count, 8) for tag, count in tags)
    return b"MM\0*" + struct.pack(">LH", 8, number) + entries


@pytest.mark.parametrize("is_big", [False, True])
def test_a_tiff_of_too_many_strips_is_refused(is_big: bool) -> None:
    assert count_tiff_strips(tiff([(256, 40), (273, 77), (325, 70)], is_big=is_big)) == 77
    for tag in (273, 279, 324, 325):
        with pytest.raises(ImageCorruption, match=f"more than {MAX_SEGMENTS} segments"):
            decode_image(tiff([(256, 1), (tag, MAX_SEGMENTS + 1)], is_big=is_big))


def test_a_tiff_of_too_many_entries_is_refused() -> None:
    with pytest.raises(ImageCorruption, match=f"more than {MAX_SEGMENTS} segments"):
        decode_image(tiff([(256, 1)], is_big=True, num_entries=MAX_SEGMENTS + 1))


@pytest.mark.parametrize("size", [0, 5, 8, 9, 20])
def test_a_tiff_that_is_cut_is_no_image(size: int) -> None:
    for is_big in (False, True):
        with pytest.raises(ImageCorruption, match="cannot be read as an image"):
            decode_image(tiff([(256, 1)], is_big=is_big)[:size])


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"big_tiff": True}])
def test_a_tiff_as_people_send_it_is_decoded(options: dict[str, object]) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (400, 300)).save(stream, "TIFF", **options)
    assert decode_image(stream.getvalue()).size == (400, 300)


def test_a_png_of_too_many_chunks_is_refused() -> None:
    chunk = media_bombs.png_chunk(b"teSt", b"")
    pixels = bytes(31 * 10)
    fine = media_bombs.png(10, 10, *[chunk] * 1000, pixels=pixels)
    assert count_png_chunks(fine) == 1003
    assert decode_image(fine).size == (10, 10)
    with pytest.raises(ImageCorruption, match=f"more than {MAX_SEGMENTS} segments"):
        decode_image(media_bombs.png(10, 10, *[chunk] * MAX_SEGMENTS, pixels=pixels))


@pytest.mark.parametrize(
    "header",
    [b"P6\n700 700\n65535\n", b"P5\n1000 1000\n1023\n", b"P3\n900 900\n255\n", b"P2\n900 900\n255\n"],
)
def test_large_files_that_are_decoded_in_python_are_refused(header: bytes) -> None:
    filler = b"1 " if header[1:2] in b"23" else b"\0\1"
    with pytest.raises(ImageCorruption, match=rf"slow to decode \(ppm.*limit is {MAX_SLOW_BYTES}; send"):
        decode_image(header + filler * MAX_SLOW_BYTES)


def test_small_and_plain_files_of_these_formats_are_decoded() -> None:
    assert decode_image(b"P6\n4 4\n65535\n" + b"\0\1" * 48).size == (4, 4)
    assert decode_image(b"P6\n1000 1000\n255\n" + bytes(3_000_000)).size == (1000, 1000)
    stream = io.BytesIO()
    Image.new("RGB", (1000, 1000)).save(stream, "BMP")
    assert decode_image(stream.getvalue()).size == (1000, 1000)


def test_a_side_has_a_limit() -> None:
    check_image_size(65_535, 900)
    with pytest.raises(ImageCorruption, match="65535 a side"):
        check_image_size(65_536, 3)
