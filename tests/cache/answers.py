"""Entries with numbers that tell them apart, for the tests of this folder."""

from __future__ import annotations

import hashlib

import numpy as np

from infinity_emb.backends.base import Rows, SparseRow
from infinity_emb.computed import Entry


def key_of(number: int) -> bytes:
    return hashlib.blake2b(b"%d" % number, digest_size=16).digest()


def vector(number: float, dimension: int = 4) -> Rows:
    return np.full(dimension, number, dtype=np.float32)


def entry_of(number: int, dimension: int = 4) -> Entry:
    return Entry(number, (vector(number, dimension),))


def same_value(one: Rows | SparseRow, other: Rows | SparseRow) -> bool:
    if isinstance(one, SparseRow) or isinstance(other, SparseRow):
        assert isinstance(one, SparseRow)
        assert isinstance(other, SparseRow)
        return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    return one.dtype == other.dtype and np.array_equal(one, other)


def same_entry(one: Entry | None, other: Entry | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.num_tokens == other.num_tokens and all(
        same_value(a, b) for a, b in zip(one.values, other.values, strict=True)
    )
