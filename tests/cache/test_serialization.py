"""Serialize outputs and detect corrupt bytes."""

from __future__ import annotations

import zlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from infinity_emb.cache.serialization import pack_output, unpack_output
from infinity_emb.items import ItemOutput, SparseVector
from tests.support.outputs import entry_of, key_of, same_entry

FLOATS = st.floats(width=32, allow_nan=False)
VECTORS = npst.arrays(np.float32, st.integers(0, 9), elements=FLOATS)
MATRICES = npst.arrays(np.float32, st.tuples(st.integers(0, 5), st.integers(1, 5)), elements=FLOATS)
SPARSE = st.integers(0, 6).flatmap(
    lambda n: st.builds(SparseVector, npst.arrays(np.int32, n), npst.arrays(np.float32, n, elements=FLOATS))
)
ENTRIES = st.builds(
    ItemOutput,
    st.integers(0, 2**32 - 1),
    st.lists(st.one_of(VECTORS, MATRICES, SPARSE), max_size=3).map(tuple),
)
KEY = key_of(1)


@given(ENTRIES)
def test_outputs_are_unpacked_as_they_were_packed(entry: ItemOutput) -> None:
    assert same_entry(unpack_output(KEY, pack_output(KEY, entry)), entry)


def test_the_layout_is_the_documented_one() -> None:
    content = np.array([7, 0, 1, 2], dtype="<u4").tobytes() + np.array([1.5, -2], dtype="<f4").tobytes()
    checksum = np.uint32(zlib.crc32(KEY + content)).astype("<u4").tobytes()
    assert pack_output(KEY, ItemOutput(7, (np.array([1.5, -2], dtype=np.float32),))) == checksum + content


@given(st.data())
def test_changed_truncated_and_misplaced_bytes_are_corrupt(data: st.DataObject) -> None:
    packed = pack_output(KEY, entry_of(3))
    place = data.draw(st.integers(0, len(packed) - 1))
    changed = bytearray(packed)
    changed[place] ^= data.draw(st.integers(1, 255))
    assert unpack_output(KEY, bytes(changed)) is None
    assert unpack_output(KEY, packed[:place]) is None
    assert unpack_output(key_of(2), packed) is None
