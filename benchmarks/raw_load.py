"""Load a server on the loopback from one thread, for 40 to 70 µs of CPU time per request.

The generator shares the cores with the server, so requests are bytes made in advance, sockets are polled
without an event loop, and of a response only the status and the length are read.
"""

from __future__ import annotations

import collections
import errno
import math
import re
import resource
import select
import socket
import time
from collections.abc import Sequence
from typing import NamedTuple

OK = "200"
# Outcomes of requests without a response; the others are status codes.
REFUSED, CLOSED, RESET, UNANSWERED = "connection refused", "closed", "reset", "no response"
PROBE = -1
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_READ_BYTES = 2**18
_POLL_S = 0.05
_TICK_S = 0.002
_NOT_CONNECTED = (errno.ECONNREFUSED, errno.ENOTCONN)


class Answer(NamedTuple):
    """One request, in seconds since the load began.

    number: of the request in the list, or PROBE.
    response: head and body, of accepted requests only.
    """

    number: int
    due_s: float
    received_s: float
    outcome: str
    response: bytes = b""

    @property
    def is_ok(self) -> bool:
        return self.outcome == OK

    @property
    def latency_s(self) -> float:
        return self.received_s - self.due_s


class _Connection:
    """A connection and the request that it carries."""

    __slots__ = ("due_s", "index", "is_busy", "is_reused", "received", "socket", "unsent")

    def __init__(self, client: socket.socket) -> None:
        self.socket = client
        self.is_busy = self.is_reused = False
        self.index, self.due_s, self.received, self.unsent = 0, 0.0, b"", b""


class RawLoad:
    """Send requests in a cycle; each one in flight has a connection, and those kept open are used again.

    probe: sent `probes_per_s` times a second on a new connection, as load balancers do.
    num_resent: requests that met a connection that the server was closing.
    """

    def __init__(
        self, requests: Sequence[bytes], *, port: int, probe: bytes = b"", probes_per_s: float = 10
    ) -> None:
        _raise_file_limit()
        self._requests, self._probe, self._address = requests, probe, ("127.0.0.1", port)
        self._probes_per_s = probes_per_s
        self._epoll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._started_s = time.perf_counter()
        self._num_sent = self._num_probes = self._num_busy = 0
        self._answers: list[Answer] = []
        self._num_finished = 0
        self.num_resent = 0
        self.max_connections = 0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the load began."""
        return time.perf_counter() - self._started_s

    @property
    def answers(self) -> list[Answer]:
        """What has been answered, in order of time."""
        return self._answers

    def run_closed(self, num_clients: int, num_requests: int) -> list[Answer]:
        """Let each client send its next request when it has received the last response."""
        while self._num_finished < num_requests:
            while self._num_busy < num_clients and self._num_sent < num_requests:
                self._send_next(self.elapsed_s)
            self._poll(_POLL_S)
        return self._answers

    def run_open(self, per_s: float, until_s: float) -> None:
        """Send requests at a fixed rate, whether or not earlier ones are answered."""
        first, first_s = self._num_sent, self.elapsed_s
        while (now_s := self.elapsed_s) < until_s:
            while (due_s := first_s + (self._num_sent - first) / per_s) <= now_s:
                self._send_next(due_s)
            if (probe_s := self._next_probe_s) <= now_s:
                self._num_probes += 1
                self._send(self._connect(), PROBE, probe_s)
            wait_s = min(due_s, self._next_probe_s) - self.elapsed_s
            if wait_s < _TICK_S:
                # Sockets are polled once in a tick: each poll costs as much as a request.
                time.sleep(max(0.0, now_s + _TICK_S - self.elapsed_s))
                wait_s = 0.0
            self._poll(min(wait_s, _POLL_S))

    @property
    def _next_probe_s(self) -> float:
        return self._num_probes / self._probes_per_s if self._probe else math.inf

    def drain(self, timeout_s: float) -> None:
        """Wait for all responses; those that do not come are recorded as such."""
        until_s = self.elapsed_s + timeout_s
        while self._num_busy and self.elapsed_s < until_s:
            self._poll(_POLL_S)
        for connection in list(self._connections.values()):
            if connection.is_busy:
                self._finish(connection, UNANSWERED)

    def close(self) -> None:
        """Close all connections."""
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._epoll.close()

    def count_outcomes(self) -> collections.Counter[str]:
        """Count the outcomes of all requests but probes."""
        return collections.Counter(answer.outcome for answer in self._answers if answer.number != PROBE)

    def _send_next(self, due_s: float) -> None:
        index = self._num_sent % len(self._requests)
        self._num_sent += 1
        connection = self._idle.pop() if self._idle else self._connect()
        self._send(connection, index, due_s)

    def _connect(self) -> _Connection:
        client = socket.socket()
        client.setblocking(False)
        connection = _Connection(client)
        self._connections[client.fileno()] = connection
        self.max_connections = max(self.max_connections, len(self._connections))
        self._epoll.register(client.fileno(), select.EPOLLIN)
        code = client.connect_ex(self._address)
        if code not in (0, errno.EINPROGRESS, errno.ECONNREFUSED, errno.ECONNRESET):
            raise OSError(code, f"cannot connect: {errno.errorcode[code]}")
        return connection

    def _send(self, connection: _Connection, index: int, due_s: float) -> None:
        connection.index, connection.due_s, connection.received = index, due_s, b""
        if not connection.is_busy:
            connection.is_busy = True
            self._num_busy += 1
        request = self._probe if index == PROBE else self._requests[index]
        try:
            num_sent = connection.socket.send(request)
        except BlockingIOError:
            num_sent = 0
        except OSError as exc:
            self._end(connection, REFUSED if exc.errno in _NOT_CONNECTED else RESET)
            return
        if num_sent < len(request):
            connection.unsent = request[num_sent:]
            self._epoll.modify(connection.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _poll(self, timeout_s: float) -> None:
        for number, events in self._epoll.poll(timeout_s):
            connection = self._connections.get(number)
            if connection is None:
                continue
            if connection.unsent and events & select.EPOLLOUT:
                self._send_rest(connection)
            if events & ~select.EPOLLOUT:
                self._read(connection)

    def _send_rest(self, connection: _Connection) -> None:
        try:
            connection.unsent = connection.unsent[connection.socket.send(connection.unsent) :]
        except OSError:
            connection.unsent = b""  # the next read tells why
        if not connection.unsent:
            self._epoll.modify(connection.socket.fileno(), select.EPOLLIN)

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionRefusedError:
            self._end(connection, REFUSED)
            return
        except OSError:
            self._end(connection, RESET)
            return
        if not data:
            self._end(connection, CLOSED)
            return
        received = connection.received = connection.received + data if connection.received else data
        head_end = received.find(b"\r\n\r\n")
        if head_end < 0:
            return
        length = _LENGTH.search(received, 0, head_end + 2)
        if length is not None and len(received) >= head_end + 4 + int(length[1]):
            self._finish(connection, received[9:12].decode())

    def _end(self, connection: _Connection, outcome: str) -> None:
        """Record the end of a connection; a request that met the end of an idle one is sent again."""
        if connection.is_busy and connection.is_reused and not connection.received:
            index, due_s = connection.index, connection.due_s
            self._drop(connection)
            self.num_resent += 1
            self._send(self._connect(), index, due_s)
        elif connection.is_busy:
            self._finish(connection, outcome)
        else:
            self._drop(connection)

    def _finish(self, connection: _Connection, outcome: str) -> None:
        response = connection.received
        kept = response if outcome == OK and connection.index != PROBE else b""
        self._answers.append(Answer(connection.index, connection.due_s, self.elapsed_s, outcome, kept))
        self._num_finished += connection.index != PROBE
        is_open = outcome.isdigit() and b"\r\nconnection: close\r\n" not in response[:1024]
        if not is_open or connection.index == PROBE:
            self._drop(connection)
            return
        connection.is_busy, connection.is_reused, connection.received = False, True, b""
        self._num_busy -= 1
        self._idle.append(connection)

    def _drop(self, connection: _Connection) -> None:
        self._num_busy -= connection.is_busy
        connection.is_busy = False
        del self._connections[connection.socket.fileno()]
        connection.socket.close()
        if connection in self._idle:
            self._idle.remove(connection)


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
