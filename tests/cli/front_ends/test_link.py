"""The socket between two processes: order, back-pressure and the end of either."""

from __future__ import annotations

import asyncio
import socket

import numpy as np

from infinity_emb.cli.front_ends.frames import Frame
from infinity_emb.cli.front_ends.link import Link
from tests.support.event_loop import PATIENCE_S, run

MEGABYTE = np.zeros(2**20, dtype=np.uint8)


async def connect(received: list[Frame], *, reads_always: bool = True) -> tuple[Link, Link, asyncio.Event]:
    """Return a sender, a receiver, and what is set when the sender has lost the receiver."""
    lost = asyncio.Event()
    ours, theirs = socket.socketpair()
    sender = Link(lambda _: None, on_lost=lost.set, reads_always=reads_always)
    receiver = Link(received.append, on_lost=lambda: None)
    await sender.connect(ours)
    await receiver.connect(theirs)
    return sender, receiver, lost


def test_frames_arrive_in_order_whatever_their_size() -> None:
    async def main() -> None:
        received: list[Frame] = []
        sender, receiver, lost = await connect(received)
        for number in range(50):
            sender.send({"number": number}, [MEGABYTE] if number % 7 == 3 else [])
        sender.close()
        while not receiver.is_lost:
            await asyncio.sleep(0.001)
        assert [frame.header["number"] for frame in received] == list(range(50))
        await asyncio.wait_for(lost.wait(), PATIENCE_S)

    run(main())


def test_a_sender_waits_while_the_receiver_does_not_read() -> None:
    async def main() -> None:
        received: list[Frame] = []
        sender, receiver, _ = await connect(received)
        assert receiver._transport is not None
        receiver._transport.pause_reading()
        await asyncio.sleep(0)
        for _ in range(16):
            sender.send({}, [MEGABYTE])
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(sender.wait_until_writable())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        receiver._transport.resume_reading()
        await asyncio.wait_for(waiting, PATIENCE_S)
        sender.close()
        receiver.close()

    run(main())


def test_a_sender_that_must_wait_takes_nothing_if_told_so() -> None:
    """What a front end asks for makes more to send to it."""

    async def main() -> None:
        sender, receiver, _ = await connect([], reads_always=False)
        assert receiver._transport is not None
        assert sender._transport is not None
        receiver._transport.pause_reading()
        for _ in range(16):
            sender.send({}, [MEGABYTE])
        await asyncio.sleep(0.05)
        assert not sender._transport.is_reading()
        receiver._transport.resume_reading()
        await asyncio.wait_for(sender.wait_until_writable(), PATIENCE_S)
        assert sender._transport.is_reading()
        sender.close()
        receiver.close()

    run(main())


def test_the_end_of_a_process_ends_every_wait() -> None:
    async def main() -> None:
        sender, receiver, lost = await connect([])
        assert receiver._transport is not None
        receiver._transport.pause_reading()
        for _ in range(16):
            sender.send({}, [MEGABYTE])
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(sender.wait_until_writable())
        receiver._transport.abort()
        await asyncio.wait_for(waiting, PATIENCE_S)
        await asyncio.wait_for(lost.wait(), PATIENCE_S)
        sender.send({"kind": "dropped"})

    run(main())
