"""One end of the socket between a front end and the engine process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import cast

from infinity_emb.cli.coalescing_transport import CoalescingTransport
from infinity_emb.cli.front_ends.frames import Array, Frame, FrameReader, Header, pack_frame

# The sender waits while there are more unsent bytes.
_HIGH_WATER_BYTES = 2**22
_BUFFER_BYTES = 2**21  # of the socket, in the kernel


class Link(asyncio.Protocol):
    """Send and receive frames.

    on_frame: called with each frame. on_turn: called after the frames that arrived together.
    on_lost: called once, when the other process has ended or has closed its end.
    reads_always: keep receiving while the other process does not. One end of a link must, or both could wait
        for each other.
    """

    def __init__(
        self,
        on_frame: Callable[[Frame], None],
        *,
        on_turn: Callable[[], None] = lambda: None,
        on_lost: Callable[[], None],
        reads_always: bool = True,
    ) -> None:
        self.is_lost = False
        self._reads_always = reads_always
        self._on_frame = on_frame
        self._on_turn = on_turn
        self._on_lost = on_lost
        self._reader = FrameReader()
        self._unsent: list[bytes | memoryview] = []  # until the connection is made
        self._transport: CoalescingTransport | None = None
        self._writable = asyncio.Event()

    async def connect(self, end: socket.socket) -> None:
        """Begin to receive."""
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=end)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        raw = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        raw.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        self._transport = CoalescingTransport(raw, asyncio.get_running_loop())
        self._transport.writelines(self._unsent)
        self._unsent = []
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        for frame in self._reader.feed(data):
            self._on_frame(frame)
        self._on_turn()

    def pause_writing(self) -> None:
        self._writable.clear()
        if not self._reads_always and self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._writable.set()
        if not self._reads_always and self._transport is not None:
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._writable.set()
        self._on_lost()

    async def wait_until_writable(self) -> None:
        """Wait while the other process does not read what was sent."""
        if not self._writable.is_set():
            await self._writable.wait()

    def send(self, header: Header, arrays: Sequence[Array] = ()) -> None:
        """Send a frame at the end of this turn of the event loop; do nothing when the link is lost."""
        if self.is_lost:
            return
        parts = pack_frame(header, arrays)
        if self._transport is None:
            self._unsent += parts
        else:
            self._transport.writelines(parts)

    def close(self) -> None:
        """Send what is left and close."""
        if self._transport is not None:
            self._transport.close()
