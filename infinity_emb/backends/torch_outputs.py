"""What a sentence-transformers pipeline left in its features → columns of answers, on their way to the host.

Knows nothing of input layouts or of how the pipeline ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from infinity_emb.backends.base import Answers, Encoded, Rows, SparseRow
from infinity_emb.errors import BackendFailed
from infinity_emb.primitives import OutputName


class DeviceColumn(Protocol):
    """One output of some items, as tensors."""

    def to_host(self) -> DeviceColumn:
        """Begin the copy to the host without waiting for the device."""

    def entries(self) -> Rows | list[Rows] | list[SparseRow]:
        """One entry per item; called when the copy is complete."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """(B, D) of any float dtype: a row per item."""

    rows: Tensor

    def to_host(self) -> Matrix:
        return Matrix(_to_host(self.rows.float()))

    def entries(self) -> Rows:
        rows: Rows = self.rows.numpy()
        return rows


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Some rows per item: those of (B, S, D) that the mask (B, S) keeps."""

    rows: Tensor
    mask: Tensor

    def to_host(self) -> TokenRows:
        return TokenRows(_to_host(self.rows.float()), _to_host(self.mask.bool()))

    def entries(self) -> list[Rows]:
        rows, mask = self.rows.numpy(), self.mask.numpy()
        return [each[kept] for each, kept in zip(rows, mask, strict=True)]


@dataclass(frozen=True, slots=True)
class RowLists:
    """Some rows per item, end to end: (T, D), cut by `counts`."""

    rows: Tensor
    counts: list[int]

    def to_host(self) -> RowLists:
        return RowLists(_to_host(self.rows.float()), self.counts)

    def entries(self) -> list[Rows]:
        """Raises BackendFailed for another number of rows than was asked for: items would get others'."""
        if sum(self.counts) != len(self.rows):
            raise BackendFailed(f"got {len(self.rows)} rows from the model for {sum(self.counts)} spans")
        return np.split(self.rows.numpy(), np.cumsum(self.counts)[:-1])


@dataclass(frozen=True, slots=True)
class Entries:
    """A sparse row per item: (item, index) pairs (N, 2) int64 in order, and their values (N,)."""

    places: Tensor
    values: Tensor
    num_items: int

    @classmethod
    def of_rows(cls, rows: Tensor) -> Entries:
        """What is not 0 in (B, D)."""
        places = rows.nonzero()  # (N, 2); waits for the device, which must count them
        return cls(places, rows[places[:, 0], places[:, 1]], rows.shape[0])

    def to_host(self) -> Entries:
        return Entries(_to_host(self.places), _to_host(self.values.float()), self.num_items)

    def entries(self) -> list[SparseRow]:
        places, values = self.places.numpy(), self.values.numpy()
        cuts = np.searchsorted(places[:, 0], np.arange(1, self.num_items))
        indices = np.split(places[:, 1].astype(np.int32), cuts)
        return [SparseRow(*pair) for pair in zip(indices, np.split(values, cuts), strict=True)]


@dataclass(frozen=True, slots=True)
class Part:
    """The columns of one block; entry k of each belongs to item `positions[k]` of the batch."""

    positions: list[int]
    columns: dict[OutputName, DeviceColumn]


@dataclass(frozen=True, slots=True)
class TorchLaunched:
    """A batch's parts on their way to the host."""

    parts: list[Part]
    num_items: int
    copied: torch.cuda.Event | None  # passes when the last copy is complete

    @classmethod
    def start(cls, parts: Sequence[Part], num_items: int, device: torch.device) -> TorchLaunched:
        """Begin all copies to the host without waiting for the device."""
        host_parts = [
            Part(part.positions, {name: column.to_host() for name, column in part.columns.items()})
            for part in parts
        ]
        if device.type != "cuda":
            return cls(host_parts, num_items, None)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no hint
        copied.record(torch.cuda.current_stream(device))  # the current device may be another one
        return cls(host_parts, num_items, copied)

    def collect(self) -> Answers:
        """Wait for the copies. Each column in the batch's order."""
        if self.copied is not None:
            self.copied.synchronize()
        answers: dict[OutputName, Any] = {}
        for part in self.parts:
            for name, column in part.columns.items():
                self._store(answers, name, part.positions, column.entries())
        return answers

    def _store(
        self, answers: dict[OutputName, Any], name: OutputName, positions: list[int], entries: Any
    ) -> None:
        if isinstance(entries, np.ndarray):
            if name not in answers:
                answers[name] = np.zeros((self.num_items, entries.shape[1]), dtype=np.float32)
            answers[name][positions] = entries
            return
        column = answers.setdefault(name, [np.zeros((0, 0), dtype=np.float32)] * self.num_items)
        for position, entry in zip(positions, entries, strict=True):
            column[position] = entry


def read_outputs(
    features: dict[str, Any], items: Sequence[Encoded], outputs: Sequence[OutputName], *, dense_name: str
) -> dict[OutputName, DeviceColumn]:
    """The columns of `outputs` but for `chunks`, `tokens` and `maxsim`, for the items of one block.

    dense_name: the feature that holds vectors, or scores.
    """
    columns: dict[OutputName, DeviceColumn] = {}
    for name in outputs:
        if name == "dense":
            columns[name] = Matrix(features[dense_name])
        elif name == "sparse":
            entries = features.get("sparse_entries")
            columns[name] = Entries.of_rows(_as_dense(features[dense_name])) if entries is None else entries
        elif name == "multivector":
            rows = features.get("token_rows")
            columns[name] = (
                TokenRows(features["token_embeddings"], features["attention_mask"]) if rows is None else rows
            )
    return columns


def _as_dense(rows: Tensor) -> Tensor:
    return rows if rows.layout is torch.strided else rows.to_dense()


def _to_host(values: Tensor) -> Tensor:
    if values.device.type != "cuda":
        return values.cpu()
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)
