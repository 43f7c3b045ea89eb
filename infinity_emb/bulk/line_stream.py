"""Split a stream into lines in constant memory, however long they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

MAX_LINE_BYTES = 64 * 2**20
_CHUNK_BYTES = 2**20
_BOM = b"\xef\xbb\xbf"


class Stream(Protocol):
    """A file that is read from start to end."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, or none at the end."""


class Line(NamedTuple):
    """A line without its line end; `text` is None if it is too long."""

    number: int
    text: bytes | None


def iterate_lines(stream: Stream, *, max_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """Yield the lines of a stream in constant memory; the last one may lack its line end."""
    rest, number, is_skipping = b"", 0, False
    while chunk := stream.read(_CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            number += 1
            text = line.removeprefix(_BOM) if number == 1 else line
            yield Line(number, None if is_skipping or len(line) > max_bytes else text.removesuffix(b"\r"))
            is_skipping = False
        if len(rest) > max_bytes:
            rest, is_skipping = b"", True
    if rest or is_skipping:
        text = rest.removeprefix(_BOM) if number == 0 else rest
        yield Line(number + 1, None if is_skipping else text.removesuffix(b"\r"))
