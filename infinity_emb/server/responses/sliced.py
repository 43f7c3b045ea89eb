"""Encode large responses in slices on a thread, and send them slice by slice.

Encoded on the event loop, hundreds of responses would block it for hundreds of slices in a row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import orjson
import pybase64
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from infinity_emb.scheduling.fair_threads import MAX_SHORT_CHARS, FairThreads
from infinity_emb.scheduling.request_context import Memory

# Less than a millisecond to encode, as text. Responses with less are encoded on the event loop, those of a
# whole batch perhaps in one turn.
VALUES_PER_SLICE = 8_192
# Smaller pieces are joined, as each waits for a thread. A multiple of 3, so that base64 is not padded within.
_MIN_PIECE_BYTES = 3 * 2**16
CHARS_PER_VALUE = 16  # which take as long to encode as a number
_MAX_TEXT_CHARS = 2**16
# Never occurs in JSON.
_GAP = b"\0"
_GAP_FRAGMENT = orjson.Fragment(_GAP)


class Slices(Protocol):
    """A part of a JSON document that is encoded later, in slices."""

    @property
    def num_values(self) -> int:
        """Return how many numbers or texts it has."""

    def encode(self) -> Iterator[bytes]:
        """Encode about VALUES_PER_SLICE values at a time."""


class JsonList(NamedTuple):  # which orjson leaves to `default`, unlike dataclasses
    """A list whose items are made when they are encoded.

    num_values: of all items together; it determines the size of a slice.
    """

    make_item: Callable[[int], object]
    num_items: int
    num_values: int

    def make_items(self, part: range) -> list[object]:
        """Return the items of a slice."""
        return list(map(self.make_item, part))

    def encode(self) -> Iterator[bytes]:
        """Encode the items of a slice, and the brackets and commas around them."""
        separator = b"["
        for part in split_items(self.num_items, self.num_values):
            yield separator
            yield from self._encode_part(part)
            separator = b","
        yield b"]" if self.num_items else b"[]"

    def _encode_part(self, part: range) -> Iterator[bytes]:
        """Encode some items without brackets. Keep no copy: hundreds of responses may wait here."""
        text, gaps = dump(self.make_items(part))
        text = text[1:-1]
        yield from fill_gaps(text, gaps)


class Base64Text(NamedTuple):
    """The bytes of a large array as base64."""

    array: npt.NDArray[Any]

    @property
    def num_values(self) -> int:
        return self.array.size

    def encode(self) -> Iterator[bytes]:
        """Encode some bytes, and the quotes around all."""
        data = self.array.reshape(-1).view(np.uint8).data
        yield b'"'
        for start in range(0, len(data), _MIN_PIECE_BYTES):
            yield pybase64.b64encode(data[start : start + _MIN_PIECE_BYTES])
        yield b'"'


class LongText(NamedTuple):
    """A text that orjson would encode in one long call."""

    text: str

    @property
    def num_values(self) -> int:
        return len(self.text) // CHARS_PER_VALUE

    def encode(self) -> Iterator[bytes]:
        """Encode some characters, and the quotes around all."""
        yield b'"'
        for start in range(0, len(self.text), _MAX_TEXT_CHARS):
            yield orjson.dumps(self.text[start : start + _MAX_TEXT_CHARS])[1:-1]
        yield b'"'


def mark_long_texts(value: Any) -> Any:
    """Wrap long texts in `LongText`; those in a list or an object are replaced in place."""
    holder = [value]
    containers: list[Any] = [holder]
    while containers:
        container = containers.pop()
        for key, item in container.items() if isinstance(container, dict) else enumerate(container):
            if isinstance(item, (dict, list)):
                containers.append(item)
            elif isinstance(item, str) and len(item) > _MAX_TEXT_CHARS:
                container[key] = LongText(item)
    return holder[0]


def dump(content: object) -> tuple[bytes, list[Slices]]:
    """Encode JSON with a gap for each part that is encoded in slices, and return these parts in order.

    Lists are encoded at once as long as they have few values together.
    """
    gaps: list[Slices] = []
    num_values_left = VALUES_PER_SLICE

    def leave_gap(value: Any) -> object:
        nonlocal num_values_left
        if not hasattr(value, "encode"):
            raise TypeError
        if isinstance(value, JsonList) and value.num_values <= num_values_left:
            num_values_left -= value.num_values
            return value.make_items(range(value.num_items))
        gaps.append(value)
        return _GAP_FRAGMENT

    options = orjson.OPT_SERIALIZE_NUMPY
    return orjson.dumps(content, default=leave_gap, option=options), gaps


def fill_gaps(text: bytes, gaps: list[Slices]) -> Iterator[bytes]:
    """Yield the pieces of a JSON document."""
    first, *others = text.split(_GAP) if gaps else [text]
    yield first
    for gap, piece in zip(gaps, others, strict=True):
        yield from gap.encode()
        yield piece


class SlicedResponse(Response):
    """A response that can be sent once `encode` has returned.

    num_bytes: of its body.
    """

    def __init__(
        self, pieces: Iterator[bytes], *, status: int, headers: Mapping[str, str] | None, media_type: str
    ) -> None:
        super().__init__(None, status, headers, media_type)
        self.num_bytes = 0
        self._unencoded = _join_small(pieces)
        self._encoded: deque[bytes] = deque()

    async def encode(self, threads: FairThreads, memory: Memory) -> None:
        """Encode the body, in turns with other responses. Raises the error of the memory budget."""
        while (piece := await threads.run(self._encode_next, num_chars=MAX_SHORT_CHARS)) is not None:
            if not memory.take(len(piece)):
                raise memory.make_error()
            self.num_bytes += len(piece)
            self._encoded.append(piece)
        self._unencoded = iter(())  # the generator refers to the vectors
        self.headers["content-length"] = str(self.num_bytes)

    def _encode_next(self) -> bytes | None:
        return next(self._unencoded, None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send piece by piece; a server waits with each until most of the one before has left."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while self._encoded:
            body = self._encoded.popleft()
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def make_response(
    pieces: Iterator[bytes],
    *,
    num_values: int,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    media_type: str,
) -> Response:
    """Make a response of the pieces, which are encoded at once if they have few values."""
    if num_values <= VALUES_PER_SLICE:
        return Response(b"".join(pieces), status, headers, media_type)
    return SlicedResponse(pieces, status=status, headers=headers, media_type=media_type)


def split_items(num_items: int, num_values: int) -> Iterator[range]:
    """Split the indices into slices of about VALUES_PER_SLICE values."""
    size = max(1, VALUES_PER_SLICE * num_items // max(1, num_values))
    for start in range(0, num_items, size):
        yield range(start, min(start + size, num_items))


def _join_small(pieces: Iterator[bytes]) -> Iterator[bytes]:
    small: list[bytes] = []
    num_bytes = 0
    for piece in pieces:
        small.append(piece)
        num_bytes += len(piece)
        if num_bytes >= _MIN_PIECE_BYTES:
            yield b"".join(small)
            small, num_bytes = [], 0
    yield b"".join(small)
