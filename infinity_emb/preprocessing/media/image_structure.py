"""Count the parts of an image file that take time to decode, before it is decoded.

A small file may have thousands of scans, each of which visits every pixel, or millions of segments, which
Pillow reads one by one in Python.
"""

from __future__ import annotations

import re
import struct

from infinity_emb.errors import ImageCorruption

# Scans times pixels: 16 scans of the largest image; a progressive JPEG has about ten.
MAX_SCANNED_PIXELS = 1_024_000_000
MAX_SEGMENTS = 2**16

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Any marker but stuffed zeros and restarts, which occur inside a scan's data. Source: ITU-T T.81, B.1.1.
_JPEG_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA
_GIF_EXTENSION, _GIF_IMAGE, _GIF_TRAILER = b"!,;"
_NETPBM_COMMENT = re.compile(rb"#[^\r\n]*[\r\n]?")
# Width and height and, except for bitmaps, the largest value.
_NETPBM_HEADER = re.compile(rb"P[14](\s+\S+){2}\s|P\S+(\s+\S+){3}\s")
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")
_TIFF_LISTS = (273, 279, 324, 325)  # offsets and sizes of strips and of tiles


def check_segments(data: bytes) -> int:
    """Return the number of scans. Raise ImageCorruption for a file with too many segments."""
    num_segments = num_scans = 0
    if data.startswith(_PNG_SIGNATURE):
        num_segments = count_png_chunks(data)
    elif data.startswith(b"GIF8"):
        num_segments = count_gif_blocks(data)
    elif data.startswith(_TIFF_SIGNATURES):
        num_segments = count_tiff_strips(data)
    elif data.startswith(b"P"):
        num_segments = count_netpbm_header(data)
    else:
        num_segments, num_scans = count_jpeg_segments(data)
    if num_segments > MAX_SEGMENTS:
        raise ImageCorruption(
            f"has more than {MAX_SEGMENTS} segments; send it without metadata, or encode it again"
        )
    return num_scans


def check_scans(num_scans: int, num_pixels: int) -> None:
    """Raise ImageCorruption for more scans than an image of that size may have."""
    if num_scans * num_pixels > MAX_SCANNED_PIXELS:
        raise ImageCorruption(
            f"has {num_scans} scans of {num_pixels} pixels, the limit is {MAX_SCANNED_PIXELS} in all; send a"
            " baseline JPEG or a smaller version"
        )


def count_png_chunks(data: bytes) -> int:
    """Count chunks, up to one more than the limit."""
    position, num_chunks = len(_PNG_SIGNATURE), 0
    while position + 8 <= len(data) and num_chunks <= MAX_SEGMENTS:
        position += 12 + int.from_bytes(data[position : position + 4], "big")
        num_chunks += 1
    return num_chunks


def count_gif_blocks(data: bytes) -> int:
    """Count the blocks before the first image, and stray bytes, up to one more than the limit."""
    flags = data[10] if len(data) > 10 else 0
    position = 13 + (6 << (flags & 7) if flags & 0x80 else 0)
    num_blocks = 0
    while position < len(data) and num_blocks <= MAX_SEGMENTS:
        kind = data[position]
        position += 1
        num_blocks += 1
        if kind in (_GIF_IMAGE, _GIF_TRAILER):
            break
        if kind != _GIF_EXTENSION:
            continue
        position += 1
        while position < len(data) and data[position] and num_blocks <= MAX_SEGMENTS:
            position += 1 + data[position]
            num_blocks += 1
        position += 1
    return num_blocks


def count_netpbm_header(data: bytes) -> int:
    """Count the bytes of a PPM's header, comments included, up to one more than the limit."""
    beginning = data[: MAX_SEGMENTS + 1]
    has_header = _NETPBM_HEADER.match(_NETPBM_COMMENT.sub(b"", beginning))
    return 0 if has_header else len(beginning)


def count_tiff_strips(data: bytes) -> int:
    """Count the strips or tiles of the first image, or the entries of its directory if these are more."""
    order = "<" if data.startswith(b"II") else ">"
    is_big = b"+" in data[:4]
    offset_format, count_format, entry_format = ("Q", "Q", "HHQ8x") if is_big else ("L", "H", "HHL4x")
    try:
        [start] = struct.unpack_from(order + offset_format, data, 8 if is_big else 4)
        [num_entries] = struct.unpack_from(order + count_format, data, start)
    except struct.error:
        return 0  # Pillow reports the damage
    entry = struct.Struct(order + entry_format)
    position = start + struct.calcsize(order + count_format)
    most: int = num_entries
    for _ in range(min(num_entries, MAX_SEGMENTS, (len(data) - position) // entry.size)):
        tag, _, number = entry.unpack_from(data, position)
        if tag in _TIFF_LISTS:
            most = max(most, number)
        position += entry.size
    return most


def count_jpeg_segments(data: bytes) -> tuple[int, int]:
    """Count segments, up to one more than the limit, and the scans among them; 0 for other files.

    Before the first scan, Pillow skips stray bytes one by one, so each counts as a segment.
    """
    num_segments = num_scans = position = 0
    if not data.startswith(b"\xff\xd8"):
        return 0, 0
    while num_segments <= MAX_SEGMENTS:
        found = _JPEG_MARKER.search(data, position)
        if not num_scans:
            num_segments += (found.end() - 2 if found else len(data)) - position
        if not found:
            break
        position = found.end()
        marker = data[position - 1]
        num_segments += 1
        num_scans += marker == _START_OF_SCAN
        if marker == _END_OF_IMAGE and num_scans:
            break
        if marker not in (_START_OF_IMAGE, _END_OF_IMAGE, 1):
            position += int.from_bytes(data[position : position + 2], "big")
    return num_segments, num_scans
