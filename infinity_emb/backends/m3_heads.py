"""BGE-M3's two further heads: a weight per token and a vector per token, beside the text's one vector.

They read what the pipeline's transformer left in the features, so that all three answers come from one
forward pass. Source: Chen et al. 2024, M3-Embedding, sections 3.2 and 3.3, https://arxiv.org/abs/2402.03216;
file names and shapes are those of the published model's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infinity_emb.backends.torch_outputs import Entries, RowLists, TokenRows

SPARSE_FILE = "sparse_linear.pt"
MULTIVECTOR_FILE = "colbert_linear.pt"


def has_m3_heads(folder: Path) -> bool:
    """Whether a model's folder brings both heads."""
    return (folder / SPARSE_FILE).exists() and (folder / MULTIVECTOR_FILE).exists()


class M3Heads(torch.nn.Module):
    """The last module of the pipeline; adds `sparse_entries` and `token_rows` to the features on demand.

    special_ids: tokens that have no weight: start, end, padding and unknown.
    """

    forward_kwargs = frozenset({"wanted_outputs"})  # sentence-transformers hands these to `forward`

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
        """Read both files; tensors only, no code."""
        return cls(_load_linear(folder / SPARSE_FILE), _load_linear(folder / MULTIVECTOR_FILE), special_ids)

    def forward(self, features: dict[str, Any], wanted_outputs: Sequence[str] = ()) -> dict[str, Any]:
        """Nothing where only the text's own vector is wanted."""
        if "sparse" in wanted_outputs:
            features["sparse_entries"] = self._weights(features)
        if "multivector" in wanted_outputs:
            features["token_rows"] = self._vectors(features)
        return features

    def _weights(self, features: dict[str, Any]) -> Entries:
        """The largest weight of each token of the vocabulary that the text holds, where it is above 0."""
        weights = torch.relu(self.sparse(features["token_embeddings"])).squeeze(-1)  # (1, T) or (B, S)
        ids = features["input_ids"]
        counts = ~torch.isin(ids, self.special_ids)
        text = _text_of_tokens(features)  # (1, T) or (B, S)
        if "cu_seq_lens_q" not in features:
            counts &= features["attention_mask"].bool()
        num_texts = len(features["cu_seq_lens_q"]) - 1 if "cu_seq_lens_q" in features else ids.shape[0]
        places, where = torch.stack([text[counts], ids[counts]], dim=1).unique(dim=0, return_inverse=True)  # type: ignore[no-untyped-call]  # torch has no hint
        values = weights.new_zeros(len(places)).scatter_reduce(0, where, weights[counts], reduce="amax")
        is_kept = values > 0
        return Entries(places[is_kept], values[is_kept], num_texts)

    def _vectors(self, features: dict[str, Any]) -> RowLists | TokenRows:
        """Of every token but the first, length 1."""
        rows = self.multivector(features["token_embeddings"])
        rows = torch.nn.functional.normalize(rows, dim=-1)  # (1, T, D) or (B, S, D)
        if "cu_seq_lens_q" not in features:
            return TokenRows(rows[:, 1:], features["attention_mask"][:, 1:])
        layout = features["packed_layout"]
        lengths = [run.length for run in layout.runs for _ in range(run.num_sequences)]
        is_first = torch.zeros(rows.shape[1], dtype=torch.bool, device=rows.device)
        is_first[features["cu_seq_lens_q"][:-1].long()] = True
        return RowLists(rows[0][~is_first], [length - 1 for length in lengths])


def _text_of_tokens(features: dict[str, Any]) -> Tensor:
    if "seq_idx" in features:
        numbers: Tensor = features["seq_idx"].long()
        return numbers
    ids = features["input_ids"]
    return torch.arange(ids.shape[0], device=ids.device)[:, None].expand_as(ids)


def _load_linear(path: Path) -> torch.nn.Linear:
    state = torch.load(path, map_location="cpu", weights_only=True)
    weight = state["weight"]  # (out, in)
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict(state)
    return linear
