"""Decode base64 data URIs."""

from __future__ import annotations

import base64

from infinity_emb.errors import BadInput

_MAX_HEADER_CHARS = 1024
_MAX_CHARS_SHOWN = 80
# The escapes that base64 with white space can contain when percent-encoded; any other one is an error.
_ESCAPES = {b"%2B": b"+", b"%2F": b"/", b"%3D": b"=", b"%20": b" ", b"%0A": b"\n", b"%0D": b"\r"}


def parse_data_uri(text: str) -> bytes:
    """Return the content of `data:[mime][;name=value…];base64,<data>`.

    The data may be percent-encoded, contain white space and lack padding. The MIME type must be well-formed
    but is not used: decoders look at the bytes.

    Raises: BadInput for a malformed header or malformed base64, and for data that is not base64.
    Source: RFC 2397; leniency about base64 as in https://infra.spec.whatwg.org/#forgiving-base64-decode
    """
    header, comma, _ = text[:_MAX_HEADER_CHARS].partition(",")
    data = text[len(header) + 1 :]
    scheme, _, rest = header.partition(":")
    mime, *parameters = rest.split(";")
    is_base64 = bool(parameters) and parameters[-1].strip().lower() == "base64"
    are_named = all("=" in parameter for parameter in parameters[: -1 if is_base64 else None])
    is_mime = mime.count("/") == 1 or not mime
    if not (comma and scheme.lower() == "data" and is_mime and are_named):
        raise BadInput(f"is not a data URI: {shorten(text)}; write data:image/png;base64,<data>")
    if not is_base64:
        raise BadInput(f"is a data URI without base64: {shorten(text)}; write data:image/png;base64,<data>")
    try:
        return _decode_base64(data.encode())
    except ValueError as exc:
        raise BadInput(f"is a data URI with malformed base64 ({exc}): {shorten(text)}") from exc


def shorten(text: str) -> str:
    """Quote a text for an error message, cut to 80 characters."""
    return repr(text if len(text) <= _MAX_CHARS_SHOWN else text[: _MAX_CHARS_SHOWN - 1] + "…")


def _decode_base64(content: bytes) -> bytes:
    if b"%" in content:
        for escape, character in _ESCAPES.items():
            content = content.replace(escape, character).replace(escape.lower(), character)
    compact = content.translate(None, b" \t\r\n\f").rstrip(b"=")
    return base64.b64decode(compact + b"=" * (-len(compact) % 4), validate=True)
