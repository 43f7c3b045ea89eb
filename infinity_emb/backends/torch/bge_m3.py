"""Add BGE-M3's two additional heads to a model: a weight per token and a vector per token.

They read the transformer's output from the features, so that one forward pass computes all three outputs.
Source: Chen et al. 2024, M3-Embedding, sections 3.2 and 3.3,
https://arxiv.org/abs/2402.03216; file names and shapes are those of the published model's folder.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infinity_emb.backends.torch.device import copy_to_host
from infinity_emb.backends.torch.outputs import ConcatenatedVectors, MaskedVectors
from infinity_emb.errors import StartupError, one_line
from infinity_emb.items import SparseVector

SPARSE_FILE = "sparse_linear.pt"
MULTIVECTOR_FILE = "colbert_linear.pt"


def has_m3_heads(folder: Path) -> bool:
    """Return whether a model's folder contains the heads. Raise StartupError for one without the other."""
    missing = [name for name in (SPARSE_FILE, MULTIVECTOR_FILE) if not (folder / name).exists()]
    if len(missing) == 1:
        [found] = {SPARSE_FILE, MULTIVECTOR_FILE} - set(missing)
        raise StartupError(
            f"{folder / missing[0]} is missing, though {found} is there; copy it, too, or remove {found} to"
            " serve dense vectors alone"
        )
    return not missing


class M3Heads(torch.nn.Module):
    """The last module of the model; adds `sparse_output` and `multivector_output` to the features.

    special_ids: tokens without a weight: start, end, padding and unknown.
    """

    forward_kwargs = frozenset({"wanted_outputs"})  # passed to `forward` by sentence-transformers

    def __init__(
        self, sparse: torch.nn.Linear, multivector: torch.nn.Linear, special_ids: Sequence[int]
    ) -> None:
        super().__init__()
        self.sparse = sparse  # (H → 1)
        self.multivector = multivector  # (H → D)
        self.special_ids: Tensor
        self.register_buffer("special_ids", torch.tensor(sorted(special_ids)), persistent=False)

    @classmethod
    def load(cls, folder: Path, special_ids: Sequence[int]) -> M3Heads:
        """Load both files as tensors, without running code."""
        return cls(_load_linear(folder / SPARSE_FILE), _load_linear(folder / MULTIVECTOR_FILE), special_ids)

    def forward(self, features: dict[str, Any], wanted_outputs: Sequence[str] = ()) -> dict[str, Any]:
        """Compute the outputs that are requested besides `dense`."""
        if "sparse" in wanted_outputs:
            features["sparse_output"] = self._compute_weights(features)
        if "multivector" in wanted_outputs:
            features["multivector_output"] = self._compute_vectors(features)
        return features

    def _compute_weights(self, features: dict[str, Any]) -> TokenWeights:
        """Return a weight for each token, 0 for those that have none."""
        weights = torch.relu(self.sparse(features["token_embeddings"])).squeeze(-1)  # (1, T) or (B, S)
        ids = features["input_ids"]
        has_no_weight = torch.isin(ids, self.special_ids)
        if "cu_seq_lens_q" not in features:
            has_no_weight |= ~features["attention_mask"].bool()
        return TokenWeights(weights.masked_fill(has_no_weight, 0), ids, _get_lengths(features))

    def _compute_vectors(self, features: dict[str, Any]) -> ConcatenatedVectors | MaskedVectors:
        """Return a vector of length 1 for each token except the first."""
        vectors = self.multivector(features["token_embeddings"])
        vectors = torch.nn.functional.normalize(vectors, dim=-1)  # (1, T, D) or (B, S, D)
        lengths = _get_lengths(features)
        if lengths is None:
            return MaskedVectors(vectors[:, 1:], features["attention_mask"][:, 1:])
        return ConcatenatedVectors(vectors[0], lengths, num_skipped=1)


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """A sparse vector per item: the largest weight of each token id, found on the host.

    weights, ids: (1, T) for packed texts of these lengths; (B, S) for padded ones, and None.
    """

    weights: Tensor
    ids: Tensor
    lengths: list[int] | None

    def copy_to_host(self) -> TokenWeights:
        """Start the copy to the host."""
        return TokenWeights(copy_to_host(self.weights.float()), copy_to_host(self.ids), self.lengths)

    def to_entries(self) -> list[SparseVector]:
        """Return one vector per text."""
        weights, ids = self.weights.numpy(), self.ids.numpy()
        if self.lengths is not None:
            cuts = np.cumsum(self.lengths)[:-1]
            return list(map(_keep_largest, np.split(ids[0], cuts), np.split(weights[0], cuts)))
        return list(map(_keep_largest, ids, weights))


def _keep_largest(ids: np.ndarray[Any, Any], weights: np.ndarray[Any, Any]) -> SparseVector:
    """Return the largest weight of each id, without those that are 0. ids, weights: (n,)."""
    order = np.lexsort((weights, ids))
    order = order[weights[order] > 0]
    is_last = np.diff(ids[order], append=-1) != 0
    return SparseVector(ids[order][is_last].astype(np.int32), weights[order][is_last])


def _get_lengths(features: dict[str, Any]) -> list[int] | None:
    """Return the lengths of packed texts; None for padded ones."""
    if "cu_seq_lens_q" not in features:
        return None
    return [run.length for run in features["packed_layout"].runs for _ in range(run.num_sequences)]


def _load_linear(path: Path) -> torch.nn.Linear:
    """Load a layer. Raise StartupError for a file that holds something else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        weight = state["weight"]  # (out, in)
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict(state)
    except (EOFError, RuntimeError, LookupError, TypeError, AttributeError, pickle.UnpicklingError) as exc:
        raise StartupError(
            f"{path} does not hold a linear layer ({type(exc).__name__}: {one_line(exc, 200)}); copy or"
            " download it again"
        ) from exc
    return linear
