"""Frames: what one process packs, the other reads, however the bytes arrive."""

from __future__ import annotations

import numpy as np
import pytest

from infinity_emb.cli.front_ends.frames import Array, FrameReader, pack_frame

ARRAYS: list[Array] = [
    np.arange(5, dtype=np.int32),
    np.zeros((0, 4), dtype=np.float32),
    np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1],
    np.array(True),
    np.array([1.5], dtype=np.float16),
]


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_frames_arrive_whole_in_pieces_of_any_size(size: int) -> None:
    stream = b"".join([*pack_frame({"kind": "a"}, ARRAYS), *pack_frame({"kind": "é"}), *pack_frame({})])
    reader = FrameReader()
    frames = [
        frame for start in range(0, len(stream), size) for frame in reader.feed(stream[start : start + size])
    ]
    assert [frame.header for frame in frames] == [{"kind": "a"}, {"kind": "é"}, {}]
    for sent, received in zip(ARRAYS, frames[0].arrays, strict=True):
        assert (received.dtype, received.shape) == (sent.dtype, sent.shape)
        assert received.tolist() == sent.tolist()


def test_a_received_array_may_be_changed() -> None:
    (frame,) = FrameReader().feed(b"".join(pack_frame({}, [np.zeros(3, dtype=np.float32)])))
    frame.arrays[0][:] = 1
    assert frame.arrays[0].tolist() == [1, 1, 1]
