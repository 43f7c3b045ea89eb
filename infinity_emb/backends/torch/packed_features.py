"""Concatenate sequences into the features of a packed batch.

Everything that depends on the batch is in a few tables, filled on the host and copied to the device: features
of equally many texts and tokens differ only in the values of the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from infinity_emb.backends.torch.device import allocate_staging
from infinity_emb.backends.torch.input_layout import InputLayout
from infinity_emb.backends.torch.packed_heads import PackedSequences
from infinity_emb.backends.torch.packed_layout import PackedLayout, PooledRows, find_equal_runs
from infinity_emb.items import Encoded


class PackedTables(NamedTuple):
    """Values of a packed batch of B texts and T tokens, on the host or on the device."""

    tokens: Tensor  # (4, T) int64: ids, positions, index of the text, type ids
    starts: Tensor  # (2, B + 1) int32: where each text starts, among all tokens and among the pooled ones
    head: Tensor | None  # (3, B, k) int64: ids, mask and indices of the tokens that a head reads

    def copy_to(self, device: torch.device) -> PackedTables:
        """Start a copy to the device."""
        head = None if self.head is None else self.head.to(device, non_blocking=True)
        tokens, starts = (each.to(device, non_blocking=True) for each in (self.tokens, self.starts))
        return PackedTables(tokens, starts, head)


def build_packed_features(
    items: Sequence[Encoded], layout: InputLayout, device: torch.device
) -> dict[str, Any]:
    """Concatenate the items, which are in ascending order of length."""
    tables = fill_tables(items, layout, device).copy_to(device)
    lengths = [len(item.token_ids) for item in items]
    return make_features(tables, layout, lengths, lengths[-1])


def fill_tables(items: Sequence[Encoded], layout: InputLayout, device: torch.device) -> PackedTables:
    """Fill tables on the host, in memory from which they can be copied to the device without waiting."""
    lengths = [len(item.token_ids) for item in items]
    starts = np.cumsum([0, *lengths])  # (B + 1,)
    host_starts = allocate_staging((2, len(starts)), torch.int32, device)
    host_starts.numpy()[:] = starts, np.arange(len(starts))
    host = allocate_staging((4, int(starts[-1])), torch.int64, device)
    table = host.numpy()
    sequence = np.repeat(np.arange(len(lengths)), lengths)  # (T,)
    table[0] = np.concatenate([item.token_ids for item in items])
    table[1] = _count_positions(table[0], starts, sequence, layout.position_offset)
    table[2] = sequence
    table[3] = 0
    if layout.has_type_ids:
        for item, start in zip(items, starts, strict=False):
            if item.type_ids is not None:
                table[3, start : start + len(item.token_ids)] = item.type_ids
    head = None if layout.reads == "flat" else _fill_head_table(items, starts, layout, device)
    return PackedTables(host, host_starts, head)


def make_features(
    tables: PackedTables, layout: InputLayout, lengths: list[int] | None, max_length: int
) -> dict[str, Any]:
    """Return the features that a model takes, views of the tables on its device.

    lengths: of the texts; None if the tables will hold texts of various lengths.
    max_length: of the longest text.
    """
    input_ids, position_ids, seq_idx, type_ids = tables.tokens.unsqueeze(1)  # (1, T)
    cu_seq_lens, pooled_starts = tables.starts  # (B + 1,)
    pooled = None
    if layout.pooled_token is not None:
        if tables.head is not None:
            indices = tables.head[2, :, 0]  # (B,)
        else:
            indices = cu_seq_lens[:-1] if layout.pooled_token == "first" else cu_seq_lens[1:] - 1
        are_last = layout.pooled_token == "last" and layout.skipped_token_id is None  # a head may skip some
        pooled = PooledRows(indices, pooled_starts, are_last)
    read_starts = cu_seq_lens if pooled is None else pooled_starts  # pooling finds one token per text
    if lengths is not None:
        starts = np.cumsum([0, *lengths]) if pooled is None else np.arange(len(lengths) + 1)
        # Modules of sentence-transformers call `tolist`, which would wait for earlier batches on the device.
        setattr(read_starts, Tensor.tolist.__name__, starts.tolist)
    features: dict[str, Any] = {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "seq_idx": seq_idx,
        "cu_seq_lens_q": read_starts,
        "packed_layout": PackedLayout(find_equal_runs(lengths or []), cu_seq_lens, max_length, pooled),
        "modality": "text",
    }
    if layout.has_type_ids:
        features["token_type_ids"] = type_ids
    if tables.head is None:
        return features
    head_ids, attention_mask, gather = tables.head
    sequences = {name: value for name, value in features.items() if name not in ("modality", "seq_idx")}
    return {
        "input_ids": head_ids,
        "attention_mask": attention_mask,
        "packed_sequences": PackedSequences(sequences, gather),
        "modality": "text",
        **layout.constants,
    }


def _count_positions(ids: Any, starts: Any, sequence: Any, first: int) -> Any:
    """Return the position of each token, (T,).

    first: of a sequence's first token. Networks whose positions start above 0 skip their padding token
        wherever it occurs; its position is its id, first - 1.
    """
    is_padding = ids == first - 1
    if not first or not is_padding.any():
        return np.arange(len(ids)) - starts[sequence] + first
    counts = np.cumsum(~is_padding)  # (T,)
    before = np.concatenate([[0], counts])[starts[sequence]]
    return np.where(is_padding, 0, counts - before) + first - 1


def _fill_head_table(
    items: Sequence[Encoded],
    starts: np.ndarray[Any, np.dtype[np.int64]],
    layout: InputLayout,
    device: torch.device,
) -> Tensor:
    """Return (3, B, k): a padded batch of the tokens that the head reads, and where they are."""
    lengths = np.diff(starts)  # (B,)
    width = int(lengths[-1]) if layout.reads == "all" else 1
    host = allocate_staging((3, len(items), width), torch.int64, device)
    ids, mask, indices = host.numpy()  # (B, k) each; indices: of the packed tokens
    ids[:] = layout.pad_token_id
    mask[:] = np.arange(width) < lengths[:, None]
    if layout.reads == "all":
        indices[:] = starts[:-1, None] + np.minimum(np.arange(width), lengths[:, None] - 1)
    elif layout.reads == "first":
        indices[:, 0] = starts[:-1]
    else:
        indices[:, 0] = starts[:-1] + [_find_last_token(item, layout.skipped_token_id) for item in items]
    flat_ids = np.concatenate([item.token_ids for item in items])
    ids[mask == 1] = flat_ids[indices[mask == 1]]
    return host


def _find_last_token(item: Encoded, skipped_token_id: int | None) -> int:
    """Return the index that decoder classifiers read: of the last token that is not padding, else 0."""
    if skipped_token_id is None:
        return len(item.token_ids) - 1
    kept = np.flatnonzero(item.token_ids != skipped_token_id)
    return int(kept[-1]) if len(kept) else 0
