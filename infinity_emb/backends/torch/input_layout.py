"""Lay out encoded inputs as the features that a sentence-transformers model takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from infinity_emb.backends.torch.device import allocate_staging, copy_to_device
from infinity_emb.backends.torch.packed_attention import PackedLayout, find_equal_runs
from infinity_emb.backends.torch.packed_heads import PackedSequences
from infinity_emb.backends.torch.padding import group_by_length
from infinity_emb.items import Encoded

# The hidden states that later modules or a head read: those of packed sequences ("flat"), of each sequence's
# first or last token, or of all tokens as a padded batch.
HeadReads = Literal["flat", "first", "last", "all"]
# Largest fraction of a padded batch that may be padding.
MAX_PADDING = 0.15
# With `all`, only the head computes padding, which costs little.
_MAX_HEAD_PADDING = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLayout:
    """Layout of a model's inputs."""

    form: Literal["packed", "padded", "bag"]
    reads: HeadReads = "flat"  # for packed inputs
    position_offset: int = 0  # position of the first token; RoBERTa counts from padding_idx + 1
    may_pad: bool = True  # else only inputs of equal length share a padded batch
    has_type_ids: bool = False
    pad_token_id: int = 0
    pads_left: bool = False
    # A classifier on a decoder reads the last token that is not this one; None if it reads the last.
    skipped_token_id: int | None = None
    # Features of every batch.
    constants: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Block:
    """Some of a group's items, laid out for one forward pass."""

    positions: list[int]  # in the group
    features: dict[str, Any]


def build_blocks(items: Sequence[Encoded], layout: InputLayout, device: torch.device) -> Iterator[Block]:
    """Lay out items of one spec in blocks that contain each item once, in ascending order of length."""
    if items[0].features is not None:
        yield from _collate_blocks(items, layout, device)
        return
    lengths = [len(item.token_ids) for item in items]
    order = np.argsort(lengths, kind="stable").tolist()
    if layout.form == "bag":
        yield Block(order, _build_bag_features([items[index] for index in order], device))
        return
    is_packed = layout.form == "packed" and all(item.num_attended_tokens is None for item in items)
    ascending = [lengths[index] for index in order]
    for start, end in _find_cuts(ascending, layout, is_packed=is_packed):
        chosen = order[start:end]
        build = build_packed_features if is_packed else build_padded_features
        yield Block(chosen, build([items[index] for index in chosen], layout, device))


def _find_cuts(lengths: list[int], layout: InputLayout, *, is_packed: bool) -> list[tuple[int, int]]:
    if not is_packed:
        return group_by_length(lengths, max_padding=MAX_PADDING if layout.may_pad else 0)
    if layout.reads == "all":
        return group_by_length(lengths, max_padding=_MAX_HEAD_PADDING)
    return [(0, len(lengths))]


def build_packed_features(
    items: Sequence[Encoded], layout: InputLayout, device: torch.device
) -> dict[str, Any]:
    """Concatenate the items, which are in ascending order of length."""
    lengths = [len(item.token_ids) for item in items]
    starts = np.cumsum([0, *lengths])  # (B + 1,)
    num_tokens = int(starts[-1])
    host_starts = allocate_staging((len(starts),), torch.int32, device)
    host_starts.numpy()[:] = starts
    host = allocate_staging((4, num_tokens), torch.int64, device)
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
    input_ids, position_ids, seq_idx, type_ids = host.to(device, non_blocking=True).unsqueeze(1)  # (1, T)
    cu_seq_lens = host_starts.to(device, non_blocking=True)
    # Modules of sentence-transformers ask for the list; the device would answer after all earlier batches.
    setattr(cu_seq_lens, Tensor.tolist.__name__, starts.tolist)
    features: dict[str, Any] = {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "seq_idx": seq_idx,
        "cu_seq_lens_q": cu_seq_lens,
        "packed_layout": PackedLayout(find_equal_runs(lengths), cu_seq_lens, lengths[-1]),
        "modality": "text",
    }
    if layout.has_type_ids:
        features["token_type_ids"] = type_ids
    return features if layout.reads == "flat" else _add_head_features(features, items, starts, layout, device)


def _count_positions(ids: Any, starts: Any, sequence: Any, first: int) -> Any:
    """Return the position of each token, (T,).

    first: of a sequence's first token. Networks that begin after 0 pass over their padding token wherever a
    text has it, and its position is its id, first - 1.
    """
    is_padding = ids == first - 1
    if not first or not is_padding.any():
        return np.arange(len(ids)) - starts[sequence] + first
    counts = np.cumsum(~is_padding)  # (T,)
    before = np.concatenate([[0], counts])[starts[sequence]]
    return np.where(is_padding, 0, counts - before) + first - 1


def _add_head_features(
    features: dict[str, Any],
    items: Sequence[Encoded],
    starts: np.ndarray[Any, np.dtype[np.int64]],
    layout: InputLayout,
    device: torch.device,
) -> dict[str, Any]:
    """Return a (B, k) batch of the tokens that the head reads, with the packed sequences alongside."""
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
    input_ids, attention_mask, gather = host.to(device, non_blocking=True)
    sequences = {name: value for name, value in features.items() if name not in ("modality", "seq_idx")}
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "packed_sequences": PackedSequences(sequences, gather),
        "modality": "text",
        **layout.constants,
    }


def _find_last_token(item: Encoded, skipped_token_id: int | None) -> int:
    """Find it as decoder classifiers do: the last token that is not padding, the first if all are."""
    if skipped_token_id is None:
        return len(item.token_ids) - 1
    kept = np.flatnonzero(item.token_ids != skipped_token_id)
    return int(kept[-1]) if len(kept) else 0


def build_padded_features(
    items: Sequence[Encoded], layout: InputLayout, device: torch.device
) -> dict[str, Any]:
    """Pad the items to the longest, (B, S)."""
    width = max(1, *(len(item.token_ids) for item in items))
    shape = (len(items), width)
    host = allocate_staging((4, *shape), torch.int64, device)
    table = host.numpy()
    table[:] = 0
    table[0] = layout.pad_token_id
    for row, item in enumerate(items):
        length = len(item.token_ids)
        first = width - length if layout.pads_left else 0
        table[0, row, first : first + length] = item.token_ids
        num_attended_tokens = length if item.num_attended_tokens is None else item.num_attended_tokens
        table[1, row, first : first + num_attended_tokens] = 1
        table[3, row, first + num_attended_tokens : first + length] = 1
        if item.type_ids is not None:
            table[2, row, first : first + length] = item.type_ids
    input_ids, attention_mask, type_ids, expansions = host.to(device, non_blocking=True)  # (B, S)
    features = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "modality": "text",
        **layout.constants,
    }
    if layout.has_type_ids:
        features["token_type_ids"] = type_ids
    if layout.form == "packed":
        features["key_mask"] = attention_mask
    if any(item.num_attended_tokens is not None for item in items):
        features["query_expansion_positions"] = expansions.bool()
    return features


def _build_bag_features(items: Sequence[Encoded], device: torch.device) -> dict[str, Any]:
    """Concatenate all tokens for StaticEmbedding, with the start of each text."""
    starts = np.cumsum([0, *(len(item.token_ids) for item in items)])[:-1]
    ids = np.concatenate([item.token_ids for item in items]).astype(np.int64)
    return {
        "input_ids": copy_to_device(ids, device),
        "offsets": copy_to_device(starts, device),
        "modality": "text",
    }


def _collate_blocks(items: Sequence[Encoded], layout: InputLayout, device: torch.device) -> Iterator[Block]:
    """Batch features that the model's own preprocessing made, those of equal shapes together."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for position, item in enumerate(items):
        groups.setdefault(_get_shape_key(item, may_pad=layout.may_pad), []).append(position)
    for positions in groups.values():
        positions.sort(key=lambda position: len(items[position].token_ids))
        yield Block(positions, _collate([items[position] for position in positions], layout, device))


def _get_shape_key(item: Encoded, *, may_pad: bool) -> tuple[Any, ...]:
    """Return a key that is equal for items with the same features and array shapes.

    Shapes are compared without the leading dimension and, if padding is allowed, the number of tokens.
    """
    assert item.features is not None
    return tuple(
        (name, () if isinstance(value, list) or (may_pad and _is_per_token(name, item)) else value.shape[1:])
        for name, value in sorted(item.features.items())
    )


def _is_per_token(name: str, item: Encoded) -> bool:
    """Return whether an array has one value per token, so that a batch of them is padded."""
    assert item.features is not None
    ids, value = item.features.get("input_ids"), item.features[name]
    if not isinstance(ids, np.ndarray) or not isinstance(value, np.ndarray):
        return False
    return ids.ndim == 2 and value.shape == ids.shape


def _collate(items: Sequence[Encoded], layout: InputLayout, device: torch.device) -> dict[str, Any]:
    features: dict[str, Any] = {"modality": str(items[0].spec.modality), **layout.constants}
    for name in items[0].features or ():
        arrays: list[Any] = [item.features[name] for item in items if item.features is not None]
        if isinstance(arrays[0], list):
            features[name] = [element for array in arrays for element in array]
            continue
        if _is_per_token(name, items[0]):
            fill = layout.pad_token_id if name == "input_ids" else 0
            arrays = _pad(arrays, fill, pads_left=layout.pads_left)
        features[name] = copy_to_device(np.concatenate(arrays), device)
    if layout.form == "packed" and "attention_mask" in features:
        features["key_mask"] = features["attention_mask"]
    return features


def _pad(arrays: list[Any], fill: int, *, pads_left: bool) -> list[Any]:
    width = max(array.shape[1] for array in arrays)
    missing = [width - array.shape[1] for array in arrays]
    return [
        np.pad(array, ((0, 0), (num, 0) if pads_left else (0, num)), constant_values=fill)
        for array, num in zip(arrays, missing, strict=True)
    ]


def get_first_position(network: torch.nn.Module) -> int:
    """Return the position of the first token: RoBERTa's positions start after its padding index, others at 0.

    RoBERTa's embeddings are recognised by having both a padding index and a table of positions.
    """
    for module in network.modules():
        padding_idx = getattr(module, "padding_idx", None)
        if isinstance(padding_idx, int) and isinstance(
            getattr(module, "position_embeddings", None), torch.nn.Embedding
        ):
            return padding_idx + 1
    return 0
