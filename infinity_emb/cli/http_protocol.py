"""HTTP connections with limits against slow clients, endless headers and too many connections.

Connections are checked once a second, so a request needs no timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from infinity_emb.cli.connection_slots import ConnectionSlots
from infinity_emb.cli.ordered_protocol import (
    MAX_PARSED_BYTES,
    OrderedProtocol,
    Problem,
    RequestRefused,
    format_response,
)
from infinity_emb.cli.request_head import check_head

MAX_HEADERS = 200
MAX_HEAD_BYTES = 64 * 2**10
# Minimum progress within one write timeout, unless the whole response has been sent.
MIN_BYTES_SENT = 64 * 2**10
# How long a connection may be idle once all are in use, and an extra one may wait for its only request.
MAX_IDLE_WHEN_FULL_S = 5.0

_TOO_LARGE = Problem(431, f"the headers have more than {MAX_HEAD_BYTES} bytes; send fewer")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLimits:
    """Limits of one connection.

    request_read_timeout_s: from the first byte of a connection or a request to the last one.
    response_write_timeout_s: maximum time to send MIN_BYTES_SENT, or what is left.
    """

    request_read_timeout_s: float
    response_write_timeout_s: float


class HttpProtocol(OrderedProtocol):
    """One connection."""

    def __init__(self, *args: Any, limits: ClientLimits, slots: ConnectionSlots, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._slots = slots
        self._waiting_since_s: float | None = None
        self._idle_since_s: float | None = None
        # Bytes that the parser holds: of a head, or of trailers, for httptools has no limit.
        self._num_head_bytes = self._num_trailers = 0
        self._is_all_head = self._may_be_too_large = False
        self._num_unsent, self._unsent_since_s = 0, 0.0
        self._keeps_alive_with_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._waiting_since_s = self.loop.time()
        self._slots.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room for another connection."""
        self._slots.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Start the read timeout at any byte: empty lines before a request count too."""
        self._idle_since_s = None
        if self._waiting_since_s is None:
            self._waiting_since_s = self.loop.time()
        super().data_received(data)

    def parse(self, data: bytes) -> None:
        """Limit the size of a head whose end has not arrived."""
        self._is_all_head = self.reading != "nothing"
        # The first bytes of a head are not counted: they may arrive together with another request.
        self._may_be_too_large = self._num_head_bytes + len(data) + MAX_PARSED_BYTES > MAX_HEAD_BYTES
        super().parse(data)
        if self._is_all_head and self.reading != "nothing":
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self.refuse(_TOO_LARGE)

    def on_message_begin(self) -> None:
        """Restart the read timeout at the first byte of a request; packets may hold several requests."""
        self._is_all_head = False
        self._num_head_bytes = self._num_trailers = 0
        self._waiting_since_s = self.loop.time()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count headers and trailers, and drop trailers, which must not pass for headers.

        Source: RFC 9110 section 6.5.1. Raises RequestRefused for too many.
        """
        if self.reading == "head":
            super().on_header(name, value)
        else:
            self._num_trailers += 1
        if len(self.headers) + self._num_trailers > MAX_HEADERS:
            raise RequestRefused(Problem(400, f"the request has more than {MAX_HEADERS} headers; send fewer"))

    def on_headers_complete(self) -> None:
        """Check the head, and refuse POST above the limit of connections. Raises RequestRefused.

        Other requests are served there: a busy server must not fail its health checks and be restarted.
        """
        http_version = self.parser.get_http_version()
        is_extra = self._slots.is_extra(self)
        is_too_large = self._may_be_too_large and self._count_head_bytes() > MAX_HEAD_BYTES
        problem = _TOO_LARGE if is_too_large else check_head(http_version, self.headers)
        if problem is None and is_extra and self.parser.get_method() == b"POST":
            problem = self._slots.problem
        if problem is not None:
            raise RequestRefused(problem)
        expects_100 = self.expect_100_continue = self.expect_100_continue and http_version != "1.0"
        super().on_headers_complete()
        # A client that is refused before "100 Continue" may send its body or leave it out: close then.
        self._keeps_alive_with_body = expects_100 and self.cycle.keep_alive and not is_extra
        self.cycle.keep_alive = self.cycle.keep_alive and not is_extra and not expects_100

    def on_body(self, body: bytes) -> None:
        """Keep the connection of a client that sends its body after `Expect: 100-continue`."""
        self._is_all_head = False
        self._num_head_bytes = 0
        if self._keeps_alive_with_body and not self.cycle.response_started:
            self.cycle.keep_alive = True
        self._keeps_alive_with_body = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Stop the read timeout until the next byte."""
        self._waiting_since_s = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the idle time if no other request has begun."""
        super().on_response_complete()
        if not self.is_response_pending and self.reading == "nothing":
            self._idle_since_s = self.loop.time()

    def shutdown(self) -> None:
        """Close the connection after the response."""
        self._keeps_alive_with_body = False
        super().shutdown()

    def make_room(self) -> None:
        """Close the connection at once, with a 503 if no request has arrived."""
        if self.is_response_pending:
            self.transport.abort()
            return
        if not self.is_refused and not self.transport.is_closing():
            self.transport.write(format_response(self._slots.problem))
        self.discard_received()
        self.transport.close()

    def enforce_timeouts(self, now_s: float) -> None:
        """Close the connection of a slow client, with a response if one can still be sent."""
        self.check_peer(now_s)
        if self._write_stalled(now_s):
            self.transport.abort()
        elif self._idle_since_s is not None:
            if self._slots.is_full and now_s - self._idle_since_s >= MAX_IDLE_WHEN_FULL_S:
                self.transport.close()
        elif self._waiting_since_s is not None:
            self._enforce_read_timeout(now_s, self._waiting_since_s)

    def _send_refusal(self) -> None:
        """Send the refusal; from then on, the connection is the first to make room for others."""
        super()._send_refusal()
        self._slots.note_refused(self)

    def _count_head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _write_stalled(self, now_s: float) -> bool:
        num_unsent = self.transport.get_write_buffer_size()
        if not num_unsent or not self._num_unsent:
            self._num_unsent, self._unsent_since_s = num_unsent, now_s
        elif now_s - self._unsent_since_s >= self._limits.response_write_timeout_s:
            is_stuck = num_unsent > self._num_unsent - MIN_BYTES_SENT
            self._num_unsent, self._unsent_since_s = num_unsent, now_s
            return is_stuck
        return False

    def _enforce_read_timeout(self, now_s: float, waiting_since_s: float) -> None:
        limit_s = self._limits.request_read_timeout_s
        is_server_busy = self.flow.read_paused or (self.reading != "body" and self.is_response_pending)
        if is_server_busy:
            self._waiting_since_s = now_s
        elif now_s - waiting_since_s >= min(limit_s, MAX_IDLE_WHEN_FULL_S) and self._slots.is_extra(self):
            self.make_room()
        elif self.reading == "nothing":
            if self._slots.is_full:
                limit_s = min(limit_s, MAX_IDLE_WHEN_FULL_S)
            if now_s - waiting_since_s >= limit_s:
                self.transport.close()
        elif now_s - waiting_since_s >= limit_s:
            self.refuse(Problem(408, f"the request did not arrive within {limit_s:g} s; send less at once"))


def enforce_timeouts(connections: Iterable[object], now_s: float) -> None:
    """Close the connections of slow clients; call once a second with the event loop's time."""
    for connection in list(connections):
        if isinstance(connection, HttpProtocol):
            connection.enforce_timeouts(now_s)
