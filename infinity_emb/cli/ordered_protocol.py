"""uvicorn's HTTP protocol with one response to each request, in order, whatever the client does.

A request that cannot be served is refused after the responses to earlier requests. A client that has closed
its side of the connection still gets its responses; if it has disconnected, its requests are cancelled. Of
pipelined requests, a few kilobytes are parsed at a time, and the rest after these have got their responses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from infinity_emb.cli.client_flow import read_flow
from infinity_emb.cli.coalescing_transport import CoalescingTransport
from infinity_emb.cli.request_parser import RequestParser
from infinity_emb.scheduling.request_turns import RequestTurns
from infinity_emb.server.error_format import Failure
from infinity_emb.server.responses.errors import OVERLOADED, failure_response

logger = logging.getLogger("infinity_emb")

# How long a client may go on sending after a refusal: closing earlier could lose the response.
LINGER_S = 5.0
# When a half-closed connection is probed, or closed if its client does not support the probe.
PROBE_AFTER_S = 1.0
GIVE_UP_AFTER_S = 5.0
# Parsed at once: a hundred of the smallest requests.
MAX_PARSED_BYTES = 4096
# Discarded at most before a connection is closed at once.
_DISCARDED_BYTES, _MAX_DISCARDED_READS = 2**16, 4
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Problem(NamedTuple):
    """Why a request is refused before it reaches the app."""

    status: int
    message: str


INVALID = Problem(400, "the request is not valid HTTP")


class RequestRefused(ValueError):
    """Raised while the head of a refused request is parsed."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class OrderedProtocol(HttpToolsProtocol):
    """One connection.

    reading: the part of a request that is being received.
    is_refused: whether the last request was refused; what follows it is discarded.
    """

    def __init__(self, *args: Any, turns: RequestTurns, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._turns = turns
        # Bytes after a request that waits for the previous one; nothing more is read meanwhile.
        self.unparsed = b""
        self.parser = RequestParser(self)  # type: ignore[assignment]  # has what uvicorn calls
        self.reading: Literal["nothing", "head", "body"] = "nothing"
        # uvicorn's `cycle` is the newest request; requests between this one and it wait in `pipeline`.
        self._running: RequestResponseCycle | None = None
        self.is_refused = False
        self._refusal = b""
        self._is_refusal_sent = False
        self._half_closed_since_s: float | None = None
        self._is_probed = False

    @property
    def is_response_pending(self) -> bool:
        """True while a request is being computed; later ones wait for it."""
        running = self._running
        return running is not None and not running.response_complete and not running.disconnected

    def connection_made(self, transport: Any) -> None:
        """Join small writes, and read no more than can be parsed."""
        super().connection_made(transport)
        self._writes = CoalescingTransport(transport, self.loop)
        self.transport = cast("Any", self._writes)
        self.flow = _Flow(transport, self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the request that is being computed, and drop later ones."""
        self.pipeline.clear()
        self.unparsed = b""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the next bytes, until a request waits for the previous one."""
        self._unset_keepalive_if_required()
        data = self.unparsed + data
        start = 0
        while start < len(data) and not self.pipeline:
            self.parse(data[start : start + MAX_PARSED_BYTES])
            start += MAX_PARSED_BYTES
        self.unparsed = data[start:]
        if self.unparsed:
            self.flow.pause_reading()

    def parse(self, data: bytes) -> None:
        """Parse some bytes; discard what follows a refused request."""
        if self.is_refused:
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as exc:
            cause = exc.__context__  # of a callback's exception
            self.refuse(cause.problem if isinstance(cause, RequestRefused) else INVALID)

    def eof_received(self) -> bool:  # type: ignore[override]  # as in asyncio
        """Keep the connection for the responses to complete requests, as `nc -N` expects."""
        self._writes.flush()  # if this method returns False, the loop closes the transport beneath
        if self._is_refusal_sent:
            return False
        if self.reading == "body":
            if self.cycle is self._running:
                return False
            self.pipeline.popleft()
        self.reading = "nothing"
        if self._half_closed_since_s is None:
            self._half_closed_since_s = self.loop.time()
        if self.is_response_pending:
            self.cycle.keep_alive = False
        return self.is_response_pending

    def on_message_begin(self) -> None:
        """Begin to read a head."""
        self.reading = "head"
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Begin to read a body. Raises ValueError for an invalid URL."""
        super().on_headers_complete()
        self.reading = "body"

    def on_message_complete(self) -> None:
        """Wait for the next request."""
        self.reading = "nothing"
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the next request, or close the connection if there cannot be one."""
        if self._running is not None and self._running.scope["state"].get("error_kind") == OVERLOADED:
            self._writes.flush()  # before the pause that follows
            self._turns.note_refusal()
        super().on_response_complete()
        if self.unparsed and not self.pipeline and not self.transport.is_closing():
            self.data_received(b"")
            self.flow.resume_reading()
        if self.is_response_pending or self.transport.is_closing():
            return
        if self.is_refused:
            self._send_refusal()
        elif self._half_closed_since_s is not None:
            self.transport.close()

    def refuse(self, problem: Problem) -> None:
        """Respond with an error in place of the request that is being read, and close the connection."""
        if self.is_refused or self.transport.is_closing():
            return
        logger.debug("refused a request with %d: %s", *problem)
        self.is_refused, self._refusal = True, format_response(problem)
        if self.reading == "body":
            self._abandon_newest()
        if not self.is_response_pending:
            self._send_refusal()

    def check_peer(self, now_s: float) -> None:
        """Close a half-closed connection if its client has disconnected; call once a second.

        The two cannot be distinguished until something is sent, which a disconnected client rejects. Source:
        RFC 9110 section 15.2, by which clients of HTTP/1.1 parse any number of interim responses.
        """
        running = self._running
        if self._half_closed_since_s is None or running is None:
            return
        if not self.is_response_pending or running.response_started:
            return
        waited_s = now_s - self._half_closed_since_s
        is_old = running.scope["http_version"] == "1.0"
        if _read_socket_error(self.transport) or (is_old and waited_s >= GIVE_UP_AFTER_S):
            self.transport.abort()
        elif waited_s >= PROBE_AFTER_S and not is_old and not self._is_probed:
            self._is_probed = True
            self.transport.write(_CONTINUE)

    def discard_received(self) -> None:
        """Read what has arrived: closing a socket with unread bytes resets it, and loses the response."""
        number = self.transport.get_extra_info("socket").fileno()
        with contextlib.suppress(OSError):  # there is no more, or the client has disconnected
            for _ in range(_MAX_DISCARDED_READS):
                if not os.read(number, _DISCARDED_BYTES):
                    break

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        start_task = super()._start_asgi_task

        def start() -> None:
            if not cycle.disconnected:
                start_task(cycle, app)

        self._turns.start(read_flow(cast("dict[str, Any]", cycle.scope)), start)

    def _abandon_newest(self) -> None:
        """Give up the request whose body is being read."""
        if self.cycle is not self._running:
            self.pipeline.popleft()
        elif self.cycle.response_complete:
            self._refusal = b""
        elif self.cycle.response_started:
            self.transport.abort()
        else:
            self.cycle.disconnected = True  # discards what the app sends from now on
            self.cycle.waiting_for_100_continue = False
            self.cycle.message_event.set()

    def _send_refusal(self) -> None:
        """Send the refusal, and close when the client does: closing with unread bytes would send a reset."""
        self._is_refusal_sent = True
        self.transport.write(self._refusal)
        if self._half_closed_since_s is None and self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER_S, self.transport.abort)
        else:
            self.transport.close()


class _Flow(FlowControl):
    """Pause reading while received bytes are not parsed."""

    def __init__(self, transport: asyncio.Transport, protocol: OrderedProtocol) -> None:
        super().__init__(transport)
        self._protocol = protocol

    def resume_reading(self) -> None:
        if not self._protocol.unparsed:
            super().resume_reading()


@lru_cache(maxsize=64)
def format_response(problem: Problem) -> bytes:
    """Format an error as a response that closes the connection."""
    response = failure_response({}, Failure(*problem, None), headers={"connection": "close"})
    lines = [b"HTTP/1.1 %d " % problem.status, *(b"%b: %b" % header for header in response.raw_headers)]
    return b"\r\n".join([*lines, b"", bytes(response.body)])


def _read_socket_error(transport: Any) -> int:
    """Return and clear the error that the peer caused; 0 if there is none."""
    error: int = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return error
