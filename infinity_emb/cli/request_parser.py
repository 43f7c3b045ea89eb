"""An HTTP/1.1 request parser that ignores `Upgrade` headers.

httptools does not read the body after `Connection: Upgrade`, and parses its bytes as the next request.
Source: RFC 9110 section 7.8, by which a server may ignore the header.
"""

from __future__ import annotations

from typing import Protocol

import httptools


class ParserCallbacks(Protocol):
    """The methods and attributes of uvicorn's protocol that the parser uses.

    url, headers: the parts of the current request that have arrived.
    """

    url: bytes
    headers: list[tuple[bytes, bytes]]

    def on_message_begin(self) -> None: ...
    def on_url(self, url: bytes) -> None: ...
    def on_header(self, name: bytes, value: bytes) -> None: ...
    def on_headers_complete(self) -> None: ...
    def on_body(self, body: bytes) -> None: ...
    def on_message_complete(self) -> None: ...


class RequestParser:
    """A drop-in replacement for `httptools.HttpRequestParser`."""

    def __init__(self, callbacks: ParserCallbacks) -> None:
        self._callbacks = callbacks
        self._is_head_repeated = False
        self.on_body = callbacks.on_body
        self._parser = self._make_parser()

    def feed_data(self, data: bytes) -> None:
        """Parse the next bytes of the connection.

        Raises httptools.HttpParserError for invalid HTTP, and for CONNECT.
        """
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as exc:
                num_parsed: int = exc.args[0]
                data = self._head_without_upgrade() + data[num_parsed:]
                self._parser, self._is_head_repeated = self._make_parser(), True

    def get_method(self) -> bytes:
        """Return the current request's method."""
        return self._parser.get_method()

    def get_http_version(self) -> str:
        """Return the current request's version, such as `1.1`."""
        return self._parser.get_http_version()

    def should_keep_alive(self) -> bool:
        """Return whether the connection stays open after the current request."""
        return self._parser.should_keep_alive()

    def should_upgrade(self) -> bool:
        """Return False: upgrades are ignored."""
        return False

    def on_message_begin(self) -> None:
        """Forward the start of a request."""
        if not self._is_head_repeated:
            self._callbacks.on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Forward a part of the URL."""
        if not self._is_head_repeated:
            self._callbacks.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Forward a header, or a trailer."""
        if not self._is_head_repeated:
            self._callbacks.on_header(name, value)

    def on_headers_complete(self) -> None:
        """Forward the end of the headers, unless they are parsed again. Raises ValueError for CONNECT."""
        if self._parser.get_method() == b"CONNECT":
            raise ValueError("this server is not a proxy")
        if not self._parser.should_upgrade():
            self._is_head_repeated = False
            self._callbacks.on_headers_complete()

    def on_message_complete(self) -> None:
        """Forward the end of a request, unless its body is still to be parsed."""
        if not self._parser.should_upgrade():
            self._callbacks.on_message_complete()

    def _make_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # As in uvicorn: bytes after a request with `Connection: close` must not prevent its response.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _head_without_upgrade(self) -> bytes:
        """Return the head of the current request without its `Upgrade` header."""
        method, version = self._parser.get_method(), self._parser.get_http_version()
        lines = [b"%b %b HTTP/%b" % (method, self._callbacks.url, version.encode())]
        lines += [b"%b:%b" % header for header in self._callbacks.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])
