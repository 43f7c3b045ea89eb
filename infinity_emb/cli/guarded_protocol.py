"""uvicorn's HTTP protocol with limits on what a client may cost before and after its request is served.

Bounded are the time that a request takes to arrive, its headers, the number of connections, and the time that
an answer lies unread. Clients are looked at once a second, so that a request pays for no timer. Knows nothing
of what is served. Called by `uvicorn_server.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from infinity_emb.server.error_shape import Failure
from infinity_emb.server.errors import failure_response

MAX_HEADERS = 200
MAX_HEAD_BYTES = 64 * 2**10
# An answer that is not read whole within the time limit must at least go on by this much.
MIN_BYTES_SENT = 64 * 2**10
_CLOSE = {"connection": "close"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLimits:
    """request_read_timeout_s: from a connection's or a request's first byte to its last.
    answer_write_timeout_s: without MIN_BYTES_SENT more, or all that is left, having gone out.
    max_connections: open ones, beyond which what is posted is refused.
    """

    request_read_timeout_s: float
    answer_write_timeout_s: float
    max_connections: int


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, limits: ClientLimits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._reading: Literal["nothing", "head", "body"] = "nothing"
        self._waiting_since_s: float | None = None
        self._num_head_bytes = 0
        self._num_unsent, self._unsent_since_s = 0, 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """The first request is waited for."""
        super().connection_made(transport)
        self._waiting_since_s = self.loop.time()

    def data_received(self, data: bytes) -> None:
        """Bytes before a request count too: they may be empty lines, of which no request comes."""
        if self._waiting_since_s is None:
            self._waiting_since_s = self.loop.time()
        num_of_head = len(data) if self._reading == "head" else 0
        super().data_received(data)
        if num_of_head and self._reading == "head":
            self._num_head_bytes += num_of_head
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, f"the headers have more than {MAX_HEAD_BYTES} bytes; send fewer")

    def on_message_begin(self) -> None:
        """The first byte of a request, perhaps in the same packet as the last one of another."""
        self._reading, self._num_head_bytes = "head", 0
        self._waiting_since_s = self.loop.time()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of the head, or behind a body in chunks. Raises ValueError, which uvicorn answers with 400."""
        if len(self.headers) >= MAX_HEADERS:
            raise ValueError(f"more than {MAX_HEADERS} headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Where there are too many connections, this one ends and what it posts is not computed; probes are
        answered, so that nobody restarts a server for having much to do."""
        self._reading = "body"
        is_full = len(self.connections) > self._limits.max_connections
        if is_full and self.parser.get_method() == b"POST":
            message = (
                f"all {self._limits.max_connections} connections of this server are in use; try again later"
            )
            self.app = failure_response({}, Failure(503, message, None), headers=_CLOSE)
        super().on_headers_complete()
        if is_full:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """Nothing is waited for until the next byte."""
        self._reading, self._waiting_since_s = "nothing", None
        super().on_message_complete()

    def end_if_slow(self, now_s: float) -> None:
        """Drop a client that keeps this server waiting, with an answer where there may still be one."""
        if self._is_unread(now_s):
            self.transport.abort()
        elif self._is_late(now_s):
            limit_s = self._limits.request_read_timeout_s
            self._refuse(408, f"the request did not arrive within {limit_s:g} s; send less at once")

    def _is_unread(self, now_s: float) -> bool:
        num_unsent = self.transport.get_write_buffer_size()
        if not num_unsent or not self._num_unsent:
            self._num_unsent, self._unsent_since_s = num_unsent, now_s
        elif now_s - self._unsent_since_s >= self._limits.answer_write_timeout_s:
            is_stuck = num_unsent > self._num_unsent - MIN_BYTES_SENT
            self._num_unsent, self._unsent_since_s = num_unsent, now_s
            return is_stuck
        return False

    def _is_late(self, now_s: float) -> bool:
        if self._waiting_since_s is None:
            return False
        if self.flow.read_paused or (self._reading != "body" and self._owes_answer()):
            self._waiting_since_s = now_s  # it is the server that is waited for
        return now_s - self._waiting_since_s >= self._limits.request_read_timeout_s

    def _owes_answer(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int, message: str) -> None:
        """Close the connection, after an answer where a request has begun and none has to it."""
        if self.transport.is_closing():
            return
        if self._reading == "body" and not self.cycle.response_started:
            self.transport.write(_answer(status, message))
            self.cycle.disconnected = True  # what the app says from now on goes nowhere
            self.cycle.message_event.set()
        elif self._reading == "head" and not self._owes_answer():
            self.transport.write(_answer(status, message))
        self.transport.close()


def end_slow_clients(connections: Iterable[object], now_s: float) -> None:
    """To be called once a second. now_s: by the clock of the event loop."""
    for each in list(connections):
        if isinstance(each, GuardedProtocol):
            each.end_if_slow(now_s)


def _answer(status: int, message: str) -> bytes:
    response = failure_response({}, Failure(status, message, None), headers=_CLOSE)
    lines = [b"HTTP/1.1 %d " % status, *(b"%b: %b" % each for each in response.raw_headers)]
    return b"\r\n".join([*lines, b"", bytes(response.body)])
