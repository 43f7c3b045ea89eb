"""Send small writes together, with one system call.

uvicorn writes the head and the body of a response separately, and the event loop sends each immediately: two
packets, of which a client reads the first without being able to use it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

# Larger writes are not copied, and count for flow control immediately.
MAX_HELD_BYTES = 2**16


class CoalescingTransport:
    """Hold small writes until `flush`, or the next turn of the event loop.

    Everything else is done by the transport itself.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes | memoryview] = []
        self._num_held_bytes = 0
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        """Return what is not defined here."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Hold the data, or send it if there is much of it."""
        self.writelines((data,))

    def writelines(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Hold the pieces, or send them if they are large."""
        num_bytes = sum(map(len, pieces))
        if num_bytes > MAX_HELD_BYTES:
            self.flush()
            for piece in pieces:
                self._transport.write(piece)
            return
        if not self._pieces:
            self._loop.call_soon(self.flush)
        self._pieces += pieces
        self._num_held_bytes += num_bytes
        if self._num_held_bytes > MAX_HELD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what is held."""
        pieces, self._pieces, self._num_held_bytes = self._pieces, [], 0
        if pieces and not self.is_closing():
            # Not `writelines`, which ignores flow control in some versions of asyncio (cpython issue 127655).
            self._transport.write(b"".join(pieces))

    def write_eof(self) -> None:
        """Close the writing end after what was written."""
        self.flush()
        self._transport.write_eof()

    def close(self) -> None:
        """Close the connection after what was written has been sent."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Close the connection without waiting until what was written has been sent."""
        self.flush()
        self._transport.abort()
