"""Turn JSON that orjson rejects, and that other parsers read, into JSON that it reads."""

from __future__ import annotations

import json
import re

MAX_REPLACEMENTS = 2**17
# Escapes of half a surrogate pair: valid JSON (RFC 8259, section 8.2). JavaScript writes them when it cuts a
# text within an emoji.
_HIGH = rb"[dD][89abAB][0-9a-fA-F]{2}"
_LOW = rb"[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE_SURROGATE = re.compile(
    rb"\\u(?:%(high)b(?!\\u%(low)b)|%(low)b(?<!\\u%(high)b\\u%(low)b))" % {b"high": _HIGH, b"low": _LOW}
)
_REPLACEMENT = rb"\\ufffd"


def repair_json(raw: bytes | bytearray) -> bytes:
    """Encode as UTF-8, and replace each half of a surrogate pair by U+FFFD, MAX_REPLACEMENTS at most.

    Raises UnicodeDecodeError for bytes that are no text in the encoding that they seem to have.
    """
    # By a byte order mark, which Windows writes, or by null bytes.
    encoding = json.detect_encoding(bytes(raw[:4]))
    # Without escaped backslashes each backslash begins an escape.
    text = raw.decode(encoding).encode().replace(rb"\\", rb"\u005c")
    return _LONE_SURROGATE.sub(_REPLACEMENT, text, count=MAX_REPLACEMENTS)
