"""Describe where the sequences of a packed batch are."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Run(NamedTuple):
    """Adjacent sequences of equal length."""

    start: int  # index of the first token
    length: int  # tokens of each sequence
    num_sequences: int


@dataclass(frozen=True, slots=True)
class PooledRows:
    """The only token of each sequence for which the last layer computes an output.

    are_last: they are the last tokens of their sequences.
    key, value: (1, T, H_kv * D) or (1, T, H_kv, D) of all tokens, for the last layer; None in the others.
    is_checked: the last layer computes all tokens, and attention compares its keys and values with these.
    """

    indices: Tensor  # (B,) of the packed tokens, on the model's device
    starts: Tensor  # (B + 1,) int32, from 0 in steps of 1, on the model's device
    are_last: bool = False
    key: Tensor | None = None
    value: Tensor | None = None
    is_checked: bool = False


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Positions and lengths of the concatenated sequences."""

    runs: list[Run]
    cu_seq_lens: Tensor  # (B + 1,) int32, on the model's device
    max_length: int
    pooled: PooledRows | None = None


def find_equal_runs(lengths: list[int]) -> list[Run]:
    """Return the runs of sequences of equal length, in order."""
    runs: list[Run] = []
    start = 0
    for length, same in itertools.groupby(lengths):
        runs.append(Run(start, length, num_sequences=len(list(same))))
        start += length * runs[-1].num_sequences
    return runs
