"""Entries with numbers that tell them apart, for the tests of this folder."""

from __future__ import annotations

import hashlib

import numpy as np

from infinity_emb.items import Float32Array, ItemOutput, SparseVector


def key_of(number: int) -> bytes:
    return hashlib.blake2b(b"%d" % number, digest_size=16).digest()


def vector(number: float, dimension: int = 4) -> Float32Array:
    return np.full(dimension, number, dtype=np.float32)


def entry_of(number: int, dimension: int = 4) -> ItemOutput:
    return ItemOutput(number, (vector(number, dimension),))


def same_value(one: Float32Array | SparseVector, other: Float32Array | SparseVector) -> bool:
    if isinstance(one, SparseVector) or isinstance(other, SparseVector):
        assert isinstance(one, SparseVector)
        assert isinstance(other, SparseVector)
        return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    return one.dtype == other.dtype and np.array_equal(one, other)


def same_entry(one: ItemOutput | None, other: ItemOutput | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.num_tokens == other.num_tokens and all(
        same_value(a, b) for a, b in zip(one.values, other.values, strict=True)
    )
