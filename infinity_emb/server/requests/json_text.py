"""Turn JSON that orjson rejects, and that other parsers read, into JSON that it reads.

Bodies are repaired in blocks, between which other threads get the interpreter lock.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator

MAX_REPLACEMENTS = 2**17
# Decoded, counted or searched in about a millisecond.
BLOCK_BYTES = 2**18
# Escapes of half a surrogate pair: valid JSON (RFC 8259, section 8.2). JavaScript writes them when it cuts a
# text within an emoji.
_HIGH = rb"[dD][89abAB][0-9a-fA-F]{2}"
_LOW = rb"[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE_SURROGATE = re.compile(
    rb"\\u(?:%(high)b(?!\\u%(low)b)|%(low)b(?<!\\u%(high)b\\u%(low)b))" % {b"high": _HIGH, b"low": _LOW}
)
_PAIR = re.compile(rb"\\u%b\\u%b" % (_HIGH, _LOW))
_ESCAPE_BYTES = len(rb"\ud83d")
_REPLACEMENT = rb"\\ufffd"
# Takes the place of escaped backslashes, so that each backslash begins an escape; never occurs in UTF-8.
_ESCAPED_BACKSLASH = b"\xff\xff"


def repair_json(raw: bytes) -> bytes:
    """Encode as UTF-8, and replace each half of a surrogate pair by U+FFFD, MAX_REPLACEMENTS at most.

    Raises UnicodeDecodeError for bytes that are no text in the encoding that they seem to have.
    """
    return b"".join(_replace_halves(b"".join(_encode(raw))))


def _encode(raw: bytes) -> Iterator[bytes]:
    """Yield the text in UTF-8."""
    # By a byte order mark, which Windows writes, or by null bytes.
    encoding = json.detect_encoding(raw[:4])
    decoder = codecs.getincrementaldecoder(encoding)()
    for start in range(0, len(raw), BLOCK_BYTES):
        end = start + BLOCK_BYTES
        num_kept = len(decoder.getstate()[0])  # bytes of a character that the block before has begun
        try:
            yield decoder.decode(raw[start:end], end >= len(raw)).encode()
        except UnicodeDecodeError as exc:
            exc.start += start - num_kept
            raise


def _replace_halves(text: bytes) -> Iterator[bytes]:
    """Yield the text without halves of pairs."""
    num_left = MAX_REPLACEMENTS
    for escaped in split_between_escapes(text, BLOCK_BYTES):
        block = escaped.replace(rb"\\", _ESCAPED_BACKSLASH)
        if num_left:
            block, num_replaced = _LONE_SURROGATE.subn(_REPLACEMENT, block, count=num_left)
            num_left -= num_replaced
        yield block.replace(_ESCAPED_BACKSLASH, rb"\\")


def split_between_escapes(text: bytes, num_bytes: int) -> Iterator[bytes]:
    """Yield blocks of about `num_bytes` that end neither within an escape nor within a surrogate pair."""
    start = 0
    while start < len(text):
        end = find_block_end(text, start, num_bytes)
        yield text[start:end]
        start = end


def find_block_end(text: bytes, start: int, num_bytes: int) -> int:
    """Return where a block ends, which is neither within an escape nor between the halves of a pair.

    start: not within an escape either.
    """
    end = start + num_bytes
    last = text.rfind(b"\\", max(start, end - _ESCAPE_BYTES), end)
    if last < 0 or end >= len(text):
        return end
    num_backslashes = last + 1 - start - len(text[start : last + 1].rstrip(b"\\"))
    if num_backslashes % 2 == 0:  # it is escaped itself
        return end
    if _PAIR.match(text, last):
        return last + 2 * _ESCAPE_BYTES
    return last + (_ESCAPE_BYTES if text[last + 1 : last + 2] == b"u" else 2)
