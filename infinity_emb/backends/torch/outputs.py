"""Read a model's outputs from the features, and copy them to the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from infinity_emb.backends.torch.device import copy_to_host, record_event
from infinity_emb.errors import BackendFailed
from infinity_emb.items import BatchOutputs, Encoded, Float32Array, Output, SparseVector
from infinity_emb.types import OutputName


class DeviceOutput(Protocol):
    """One output of some items, as tensors."""

    def copy_to_host(self) -> DeviceOutput:
        """Start the copy to the host without waiting for the device."""

    def to_entries(self) -> Output:
        """Return one entry per item; called after the copy has completed."""


@dataclass(frozen=True, slots=True)
class DenseOutput:
    """A vector per item: (B, D) of any float dtype."""

    vectors: Tensor

    def copy_to_host(self) -> DenseOutput:
        return DenseOutput(copy_to_host(self.vectors.float()))

    def to_entries(self) -> Float32Array:
        vectors: Float32Array = self.vectors.numpy()
        return vectors


@dataclass(frozen=True, slots=True)
class MaskedVectors:
    """Several vectors per item: those of (B, S, D) that the mask (B, S) keeps."""

    vectors: Tensor
    mask: Tensor

    def copy_to_host(self) -> MaskedVectors:
        return MaskedVectors(copy_to_host(self.vectors.float()), copy_to_host(self.mask.bool()))

    def to_entries(self) -> list[Float32Array]:
        return [vectors[mask] for vectors, mask in zip(self.vectors.numpy(), self.mask.numpy(), strict=True)]


@dataclass(frozen=True, slots=True)
class ConcatenatedVectors:
    """Several vectors per item, concatenated: (T, D), `counts` of them per item.

    num_skipped: number of vectors at the start of each item that are not part of its output.
    """

    vectors: Tensor
    counts: list[int]
    num_skipped: int = 0

    def copy_to_host(self) -> ConcatenatedVectors:
        return replace(self, vectors=copy_to_host(self.vectors.float()))

    def to_entries(self) -> list[Float32Array]:
        """Split the vectors. Raise BackendFailed for a wrong number: items would get those of others."""
        if sum(self.counts) != len(self.vectors):
            raise BackendFailed(f"got {len(self.vectors)} rows from the model for {sum(self.counts)} spans")
        entries = np.split(self.vectors.numpy(), np.cumsum(self.counts)[:-1])
        return [entry[self.num_skipped :] for entry in entries]


@dataclass(frozen=True, slots=True)
class SparseOutput:
    """A sparse vector per item: the nonzero values of (B, D), found on the host.

    The device could compact them only after the host had waited to learn their number.
    """

    vectors: Tensor

    def copy_to_host(self) -> SparseOutput:
        vectors = self.vectors if self.vectors.layout is torch.strided else self.vectors.to_dense()
        return SparseOutput(copy_to_host(vectors.float()))

    def to_entries(self) -> list[SparseVector]:
        return [_compress(vector) for vector in self.vectors.numpy()]


def _compress(vector: Float32Array) -> SparseVector:
    indices = np.flatnonzero(vector)
    return SparseVector(indices.astype(np.int32), vector[indices])


@dataclass(frozen=True, slots=True)
class BlockOutputs:
    """The outputs of one block; entry k of each belongs to item `positions[k]` of the batch."""

    positions: list[int]
    by_name: dict[OutputName, DeviceOutput]


@dataclass(frozen=True, slots=True)
class TorchInFlightBatch:
    """A batch whose outputs are being copied to the host.

    copied: recorded after the last copy; None if the outputs are on the host already.
    """

    blocks: list[BlockOutputs]
    num_items: int
    copied: torch.cuda.Event | None

    @classmethod
    def start(
        cls, blocks: Sequence[BlockOutputs], num_items: int, device: torch.device
    ) -> TorchInFlightBatch:
        """Start all copies to the host without waiting for the device."""
        host_blocks = [
            BlockOutputs(
                block.positions, {name: output.copy_to_host() for name, output in block.by_name.items()}
            )
            for block in blocks
        ]
        return cls(host_blocks, num_items, record_event(device))

    def result(self) -> BatchOutputs:
        """Wait for the copies and return each output in the order of the batch."""
        if self.copied is not None:
            self.copied.synchronize()
        outputs: dict[OutputName, Any] = {}
        for block in self.blocks:
            for name, output in block.by_name.items():
                self._store(outputs, name, block.positions, output.to_entries())
        return outputs

    def _store(
        self, outputs: dict[OutputName, Any], name: OutputName, positions: list[int], entries: Output
    ) -> None:
        if isinstance(entries, np.ndarray):
            if name not in outputs:
                outputs[name] = np.zeros((self.num_items, entries.shape[1]), dtype=np.float32)
            outputs[name][positions] = entries
            return
        output = outputs.setdefault(name, [np.zeros((0, 0), dtype=np.float32)] * self.num_items)
        for position, entry in zip(positions, entries, strict=True):
            output[position] = entry


def read_outputs(
    features: dict[str, Any], outputs: Sequence[OutputName], *, dense_name: str
) -> dict[OutputName, DeviceOutput]:
    """Read the outputs `dense`, `sparse` and `multivector` of one block.

    dense_name: the feature that holds vectors or scores.
    """
    by_name: dict[OutputName, DeviceOutput] = {}
    for name in outputs:
        if name == "dense":
            by_name[name] = DenseOutput(features[dense_name])
        elif name == "sparse":
            by_name[name] = features.get("sparse_output") or SparseOutput(features[dense_name])
        elif name == "multivector":
            by_name[name] = features.get("multivector_output") or MaskedVectors(
                features["token_embeddings"], features["attention_mask"]
            )
    return by_name


def split_token_embeddings(features: dict[str, Any], items: Sequence[Encoded]) -> list[Tensor]:
    """Return (n, H) for each item, from packed or padded token embeddings."""
    embeddings: Tensor = features["token_embeddings"]
    if "cu_seq_lens_q" in features:
        return list(torch.split(embeddings[0], [len(item.token_ids) for item in items]))
    masks = features["attention_mask"].bool()
    return [vectors[mask] for vectors, mask in zip(embeddings, masks, strict=True)]
