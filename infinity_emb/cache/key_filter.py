"""Which keys are surely not on disk, so that a new text costs no look there. Knows nothing of files.

Two places per key, which are the key's own halves.
Source: Bloom 1970, https://doi.org/10.1145/362686.362692
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_MIN_KEYS = 65_536
_BITS_PER_KEY = 16  # one look in 70 is in vain where it is as full as it may be


class KeyFilter:
    """Room for twice as many keys as are known now. One thread adds, others may ask meanwhile."""

    def __init__(self, num_keys: int) -> None:
        self._max_keys = max(_MIN_KEYS, 2 * num_keys)
        self._num_added = 0
        self._num_bits = 1 << (self._max_keys * _BITS_PER_KEY - 1).bit_length()
        self._bits = np.zeros(self._num_bits // 8, dtype=np.uint8)

    @property
    def is_crowded(self) -> bool:
        """Whether it is time for a larger one, or one without the keys that have left."""
        return self._num_added > self._max_keys

    def add(self, keys: Sequence[bytes]) -> None:
        """keys: of 16 random bytes each."""
        places = self._places(keys)
        np.bitwise_or.at(self._bits, places >> 3, self._bit(places))
        self._num_added += len(keys)

    def may_hold(self, keys: Sequence[bytes]) -> list[bool]:
        """False for a key that was not added; true for one that was, and seldom for another."""
        places = self._places(keys)
        is_set = self._bits[places >> 3] & self._bit(places)  # (N, 2)
        answer: list[bool] = is_set.all(axis=1).tolist()
        return answer

    def _places(self, keys: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """(N, 2) numbers of bits."""
        halves = np.frombuffer(b"".join(keys), dtype="<u8").reshape(-1, 2)
        return (halves & np.uint64(self._num_bits - 1)).astype(np.int64)

    @staticmethod
    def _bit(places: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        bits: npt.NDArray[np.uint8] = np.left_shift(1, places & 7).astype(np.uint8)
        return bits
