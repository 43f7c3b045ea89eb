"""Frames between processes, without the processes."""

from __future__ import annotations

from infinity_emb.cli.front_ends.frames import Array, Frame, FrameReader, Header, pack_frame


def send(header: Header, arrays: list[Array]) -> Frame:
    """Return what another process would receive."""
    (frame,) = FrameReader().feed(b"".join(pack_frame(header, arrays)))
    return frame
