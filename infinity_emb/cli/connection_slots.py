"""Count the connections, and limit those beyond the maximum.

A connection beyond the maximum is extra: it may request a probe and is closed after the response. The number
of extra connections is limited too: one is closed for the newest, so that probes are answered however many
connections are open. Those that have been refused are closed first, then the oldest.
"""

from __future__ import annotations

from typing import Protocol

from infinity_emb.cli.ordered_protocol import Problem


class Connection(Protocol):
    """The interface of a connection that is needed here."""

    def make_room(self) -> None:
        """Close at once."""


class ConnectionSlots:
    """The open connections of one server.

    problem: why requests on extra connections are refused.
    """

    def __init__(self, *, max_connections: int, max_extra: int) -> None:
        message = f"all {max_connections} connections of this server are in use; try again later"
        self.problem = Problem(503, message)
        self._max_connections = max_connections
        self._max_extra = max_extra
        self._num_regular = 0
        self._extra: dict[Connection, None] = {}  # in the order of their arrival
        self._refused: dict[Connection, None] = {}  # those of them that have their response

    @property
    def is_full(self) -> bool:
        """True if another connection would be extra."""
        return self._num_regular >= self._max_connections

    def add(self, connection: Connection) -> None:
        """Count a new connection; close an extra one if there are too many."""
        if not self.is_full:
            self._num_regular += 1
            return
        self._extra[connection] = None
        if len(self._extra) > self._max_extra:
            closing = next(iter(self._refused or self._extra))
            self._forget_extra(closing)
            self._num_regular += 1  # until `remove` is called for it
            closing.make_room()

    def note_refused(self, connection: Connection) -> None:
        """Note that a connection has got its last response, if it is an extra one."""
        if connection in self._extra:
            self._refused[connection] = None

    def remove(self, connection: Connection) -> None:
        """Forget a closed connection."""
        if connection in self._extra:
            self._forget_extra(connection)
        else:
            self._num_regular -= 1

    def is_extra(self, connection: Connection) -> bool:
        """Return whether a connection is still beyond the limit; it is not once others have closed."""
        if connection not in self._extra:
            return False
        if not self.is_full:
            self._forget_extra(connection)
            self._num_regular += 1
            return False
        return True

    def _forget_extra(self, connection: Connection) -> None:
        del self._extra[connection]
        self._refused.pop(connection, None)
