"""Send what is written in one turn of the event loop with one system call.

uvicorn writes the head and the body of a response separately, and the event loop sends each at once: two
packets, of which a client reads the first without being able to use it.
"""

from __future__ import annotations

import asyncio
from typing import Any

# More is sent at once, so that its size counts for flow control.
MAX_HELD_BYTES = 2**16


class CoalescingTransport:
    """Hold small writes until the end of the turn; everything else is done by the transport itself."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []
        self._num_held_bytes = 0
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        """Return what is not defined here."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send the data at the end of the turn, or now if there is much of it."""
        if not self._pieces:
            self._loop.call_soon(self.flush)
        self._pieces.append(data)
        self._num_held_bytes += len(data)
        if self._num_held_bytes > MAX_HELD_BYTES:
            self.flush()

    def get_write_buffer_size(self) -> int:
        """Return how many bytes have not been sent."""
        return self._num_held_bytes + self._transport.get_write_buffer_size()

    def write_eof(self) -> None:
        """Close the writing end after what was written."""
        self.flush()
        self._transport.write_eof()

    def close(self) -> None:
        """Close the connection after what was written has been sent."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._drop()
        self._transport.abort()

    def flush(self) -> None:
        """Send what is held."""
        pieces = self._drop()
        if pieces and not self.is_closing():
            self._transport.writelines(pieces)

    def _drop(self) -> list[bytes]:
        pieces, self._pieces, self._num_held_bytes = self._pieces, [], 0
        return pieces
