"""Decompress request bodies piece by piece, so that a small body cannot become a large one unnoticed.

Source: RFC 9110 section 8.4, RFC 1950 to 1952, RFC 8878 and 9659.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException

from infinity_emb.server.request_errors import body_error

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# Decompressing this much takes a few milliseconds.
MAX_PIECE_BYTES = 2**20
MAX_MEMBERS = 1024
# RFC 9659 allows no more, and browsers decode no more.
_MAX_ZSTD_WINDOW_LOG = 23


class Format(NamedTuple):
    """A format of compressed data.

    start_member: returns the decompressor of a member, by its first byte.
    window_bytes: how much decompressed data a decompressor keeps at most.
    """

    start_member: Callable[[int], Any]
    window_bytes: int


def make_decoder(content_encoding: str | None) -> Decoder | None:
    """Return the decoder of a Content-Encoding, or None for a body that is not compressed.

    Raises HTTPException 415 for an encoding that is not supported.
    """
    name = (content_encoding or "").strip().lower()
    if name in ("", "identity"):
        return None
    if name in _FORMATS:
        return Decoder(name, _FORMATS[name])
    supported = "gzip, deflate, zstd"
    raise HTTPException(
        415,
        f"the content encoding {name[:100]!r} is not supported; send one of {supported}, or none",
        headers={"Accept-Encoding": supported},
    )


class Decoder:
    """Decompress one body."""

    def __init__(self, name: str, format: Format) -> None:
        self._name = name
        self._format = format
        self._member: Any = None  # of zlib or zstd
        self._num_members = 0

    def count_memory(self, num_decoded: int) -> int:
        """Return the memory of a body of which `num_decoded` bytes are decompressed."""
        return num_decoded + min(num_decoded, self._format.window_bytes)

    def decode(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the content of a chunk, in pieces. Raises RequestValidationError for invalid data."""
        piece = b""
        while chunk or (len(piece) == MAX_PIECE_BYTES and not self._member.eof):
            if self._member is None or self._member.eof:
                self._member = self._start_member(chunk[0])
            try:
                piece = self._member.decompress(chunk, MAX_PIECE_BYTES)
            except (zlib.error, zstd.ZstdError) as exc:
                raise self._error(str(exc)) from None
            # zstd keeps what it has not read yet.
            tail = getattr(self._member, "unconsumed_tail", b"")
            chunk = self._member.unused_data if self._member.eof else tail
            yield piece

    def finish(self) -> None:
        """Raise RequestValidationError if the data is not complete."""
        if self._member is None or not self._member.eof:
            raise self._error("its end is missing")

    def _start_member(self, first_byte: int) -> Any:
        """Begin another member; gzip and zstd allow several, one after another."""
        self._num_members += 1
        if self._num_members > MAX_MEMBERS:
            raise self._error(f"it has more than {MAX_MEMBERS} members")
        return self._format.start_member(first_byte)

    def _error(self, reason: str) -> Exception:
        message = f"the body is not valid {self._name}, which its Content-Encoding says it is: {reason}"
        return body_error("content_encoding", message)


def _start_gzip(_: int) -> Any:
    return zlib.decompressobj(16 + zlib.MAX_WBITS)


def _start_deflate(first_byte: int) -> Any:
    """Choose between the zlib format and bare deflate, which some clients send in its place."""
    is_zlib = first_byte & 0x0F == 8
    return zlib.decompressobj(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)


def _start_zstd(_: int) -> Any:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _MAX_ZSTD_WINDOW_LOG})


_GZIP = Format(_start_gzip, 2**zlib.MAX_WBITS)
_FORMATS = {
    "gzip": _GZIP,
    "x-gzip": _GZIP,
    "deflate": Format(_start_deflate, 2**zlib.MAX_WBITS),
    "zstd": Format(_start_zstd, 2**_MAX_ZSTD_WINDOW_LOG),
}
