"""Exchange HTTP/1.1 requests and responses cheaply: keep-alive connections, requests built in advance.

An expensive load generator would measure itself, so bodies are neither parsed nor kept.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

from infinity_emb.cli.remote_server import RemoteServer

# Outcomes of requests without a response; the others are status codes.
NO_CONNECTION, NO_RESPONSE, TIMEOUT = "no connection", "connection closed", "timeout"
# Bytes at the end of a body, where vendors put the number of tokens.
_TAIL_BYTES = 1024
_TOKENS = re.compile(rb'"(?:prompt_tokens|total_tokens|input_tokens)"\s*:\s*(\d+)')


@dataclass(frozen=True, slots=True)
class Target:
    """The address that requests go to."""

    host: str
    port: int
    uses_tls: bool

    @classmethod
    def from_url(cls, url: str) -> Target:
        """Take host and port of a URL."""
        parts = urlsplit(url)
        uses_tls = parts.scheme == "https"
        return cls(parts.hostname or "", parts.port or (443 if uses_tls else 80), uses_tls)


def build_request(server: RemoteServer, path: str, body: object) -> bytes:
    """Build a POST of JSON, ready to send."""
    content = json.dumps(body, ensure_ascii=False).encode()
    parts = urlsplit(server.url)
    key = f"Authorization: Bearer {server.api_key}\r\n" if server.api_key else ""
    head = (
        f"POST {parts.path}{path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept: application/json\r\n{key}"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


@dataclass(frozen=True, slots=True)
class Reply:
    """The end of a request, by the clock of `time.perf_counter`.

    outcome: the status code, or one of the outcomes above.
    num_tokens: as the server counted them, or None.
    """

    sent_s: float
    received_s: float
    outcome: str
    num_tokens: int | None


class ConnectionPool:
    """Give each request in flight a connection, and keep those that the server keeps open."""

    def __init__(self, target: Target, *, timeout_s: float = 300) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._tls = ssl.create_default_context() if target.uses_tls else None
        self._idle: list[_Connection] = []

    async def exchange(self, request: bytes) -> Reply:
        """Send a request and wait for the response.

        A request that met a connection that the server was closing is sent again, as every client does.
        """
        while True:
            connection = self._take_idle()
            if connection is None:
                started_s = time.perf_counter()
                try:
                    connection = await self._open()
                except OSError:
                    return Reply(started_s, time.perf_counter(), NO_CONNECTION, None)
            is_reused = connection.num_replies > 0
            reply = await connection.exchange(request, self._timeout_s)
            if reply.outcome == NO_RESPONSE and is_reused and not connection.has_begun_reply:
                continue
            if connection.is_open:
                self._idle.append(connection)
            return reply

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.close()

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _open(self) -> _Connection:
        loop, target = asyncio.get_running_loop(), self._target
        _, connection = await loop.create_connection(_Connection, target.host, target.port, ssl=self._tls)
        return connection


class _Connection(asyncio.Protocol):
    """Send one request after another, and hand their responses to httptools."""

    def __init__(self) -> None:
        self.is_open = False
        self.num_replies = 0
        self.has_begun_reply = False
        self._reply: asyncio.Future[Reply] | None = None
        self._sent_s = 0.0
        self._tail = b""
        self._num_tokens: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    async def exchange(self, request: bytes, timeout_s: float) -> Reply:
        """Send a request and wait for its response, or for its end without one."""
        loop = asyncio.get_running_loop()
        self._parser: Any = httptools.HttpResponseParser(self)
        self._reply, self._tail, self._num_tokens = loop.create_future(), b"", None
        self.has_begun_reply = False
        self._sent_s = time.perf_counter()
        self._transport.write(request)
        timer = loop.call_later(timeout_s, self._end, TIMEOUT)
        try:
            return await self._reply
        finally:
            timer.cancel()

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self.has_begun_reply = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end("invalid HTTP")

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._finish(NO_RESPONSE)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Read the number of tokens from TEI's header."""
        if name.lower() == b"x-compute-tokens":
            self._num_tokens = int(value)

    def on_body(self, body: bytes) -> None:
        """Keep the end of the body."""
        self._tail = (self._tail + body)[-_TAIL_BYTES:]

    def on_message_complete(self) -> None:
        """Hand over the reply."""
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue and 103 Early Hints come before the response
            return
        if not self._parser.should_keep_alive():
            self.is_open = False
            self._transport.close()
        self.num_replies += 1
        self._finish(str(status))

    def _end(self, outcome: str) -> None:
        self.is_open = False
        self._finish(outcome)
        self._transport.abort()

    def _finish(self, outcome: str) -> None:
        if self._reply is None or self._reply.done():
            return
        counted = _TOKENS.findall(self._tail)
        num_tokens = int(counted[-1]) if self._num_tokens is None and counted else self._num_tokens
        self._reply.set_result(Reply(self._sent_s, time.perf_counter(), outcome, num_tokens))
