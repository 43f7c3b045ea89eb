"""Small writes are sent together and in order, and none is lost."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_emb.cli.coalescing_transport import MAX_HELD_BYTES, CoalescingTransport
from tests.support.event_loop import run


class Transport:
    """A transport that notes its calls."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def is_closing(self) -> bool:
        return "close" in self.calls or "abort" in self.calls

    def write(self, data: bytes) -> None:
        self.calls.append(data)

    def __getattr__(self, name: str) -> Any:
        return lambda: self.calls.append(name)


def note_calls(*steps: object) -> list[object]:
    """Return the calls of a transport after these steps.

    steps: bytes to write, the name of a method, or None for the end of a turn.
    """

    async def main() -> list[object]:
        transport: Any = Transport()
        coalescing = CoalescingTransport(transport, asyncio.get_running_loop())
        for step in steps:
            if isinstance(step, bytes):
                coalescing.write(step)
            elif step is None:
                await asyncio.sleep(0)
            else:
                getattr(coalescing, str(step))()
        await asyncio.sleep(0)
        return list(transport.calls)

    return run(main())


def test_small_writes_of_a_turn_are_sent_together() -> None:
    assert note_calls(b"head", b"body") == [b"headbody"]
    assert note_calls(b"head", None, b"body", None, None) == [b"head", b"body"]


def test_a_large_write_is_sent_immediately_after_what_is_held() -> None:
    large = b"x" * (MAX_HELD_BYTES + 1)
    assert note_calls(b"head", large, "pause_reading") == [b"head", large, "pause_reading"]


def test_many_small_writes_are_sent_before_the_end_of_the_turn() -> None:
    half = b"x" * (MAX_HELD_BYTES // 2)
    assert note_calls(half, half, b"y", "pause_reading") == [half + half + b"y", "pause_reading"]


@pytest.mark.parametrize("method", ["close", "abort", "write_eof", "flush"])
def test_what_was_written_is_sent_before_the_end(method: str) -> None:
    assert note_calls(b"head", b"body", method)[0] == b"headbody"


def test_nothing_is_sent_after_the_connection_was_closed() -> None:
    assert note_calls("close", b"late") == ["close"]


@given(st.lists(st.one_of(st.none(), st.integers(0, 2 * MAX_HELD_BYTES)), max_size=12), st.booleans())
def test_all_bytes_arrive_in_order(sizes: list[int | None], is_half_closed: bool) -> None:
    """sizes: of what is written, and None for the end of a turn."""

    async def main() -> tuple[bytes, bytes]:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        raw, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        reader, writer = await asyncio.open_connection(sock=theirs)
        transport = CoalescingTransport(raw, loop)
        sent = b""
        for number, size in enumerate(sizes):
            if size is None:
                await asyncio.sleep(0)
            else:
                transport.write(bytes([number]) * size)
                sent += bytes([number]) * size
        transport.write_eof() if is_half_closed else transport.close()
        received = await reader.read(-1)
        transport.close()
        writer.close()
        return sent, received

    sent, received = run(main())
    assert received == sent
