"""Lay out encoded inputs as the features that a sentence-transformers model takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from infinity_emb.backends.torch.device import allocate_staging, copy_to_device
from infinity_emb.backends.torch.input_layout import InputLayout
from infinity_emb.backends.torch.packed_features import build_packed_features
from infinity_emb.backends.torch.padding import group_by_length
from infinity_emb.items import Encoded

# Maximum fraction of padding in a padded batch.
MAX_PADDING = 0.15
# If a head reads all tokens, only the head computes padding, which costs little.
_MAX_HEAD_PADDING = 0.5


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
