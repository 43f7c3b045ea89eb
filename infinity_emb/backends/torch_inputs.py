"""Prepared inputs → the features that a sentence-transformers pipeline takes, laid out as the model wants.

Knows nothing of what a pipeline does with them; `torch_backend.py` runs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from infinity_emb.backends.base import Encoded
from infinity_emb.backends.packed_attention import PackedLayout, runs_of_equal_length
from infinity_emb.backends.packed_heads import PackedRow
from infinity_emb.batching import groups_of_similar_length

# What a model's head reads of the network's rows: those of every token, where a pipeline pools flat rows by
# itself or where the head is not one of the simple kinds; else the first or the last token's alone.
HeadReads = Literal["flat", "first", "last", "all"]
# The most of a padded batch that may be padding.
MAX_PADDING = 0.15
# With `all`, rows are padded for the head only, which costs little.
_MAX_HEAD_PADDING = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLayout:
    """How this model wants its input laid out."""

    form: Literal["packed", "padded", "bag"]
    reads: HeadReads = "flat"  # for packed input
    position_offset: int = 0  # position of the first token; RoBERTa counts from padding_idx + 1
    may_pad: bool = True  # else only inputs of equal length share a padded batch
    has_type_ids: bool = False
    pad_token_id: int = 0
    pads_left: bool = False
    # A classifier of decoders reads the last token that is not this one; None where it is simply the last.
    skipped_token_id: int | None = None
    # Given to the model with every batch.
    constants: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Block:
    """Some of a group's items, as one forward pass takes them."""

    positions: list[int]  # in the group
    features: dict[str, Any]


def blocks_of(items: Sequence[Encoded], layout: InputLayout, device: torch.device) -> Iterator[Block]:
    """Features for all `items`, which are of one recipe.

    Blocks hold each item once; within a block items stand in ascending order of their length.
    """
    if items[0].features is not None:
        yield from _collated_blocks(items, layout, device)
        return
    lengths = [len(item.token_ids) for item in items]
    order = np.argsort(lengths, kind="stable").tolist()
    if layout.form == "bag":
        yield Block(order, _bag_features([items[at] for at in order], device))
        return
    is_packed = layout.form == "packed" and all(item.num_attended is None for item in items)
    ascending = [lengths[at] for at in order]
    for start, end in _cuts(ascending, layout, is_packed=is_packed):
        chosen = order[start:end]
        make = packed_features if is_packed else padded_features
        yield Block(chosen, make([items[at] for at in chosen], layout, device))


def _cuts(lengths: list[int], layout: InputLayout, *, is_packed: bool) -> list[tuple[int, int]]:
    if not is_packed:
        return groups_of_similar_length(lengths, max_padding=MAX_PADDING if layout.may_pad else 0)
    if layout.reads == "all":
        return groups_of_similar_length(lengths, max_padding=_MAX_HEAD_PADDING)
    return [(0, len(lengths))]


def packed_features(items: Sequence[Encoded], layout: InputLayout, device: torch.device) -> dict[str, Any]:
    """One flat row; `items` in ascending order of their length."""
    lengths = [len(item.token_ids) for item in items]
    starts = np.cumsum([0, *lengths])  # (B + 1,)
    num_tokens = int(starts[-1])
    host_starts = _staging_buffer((len(starts),), torch.int32, device)
    host_starts.numpy()[:] = starts
    host = _staging_buffer((4, num_tokens), torch.int64, device)
    table = host.numpy()
    sequence = np.repeat(np.arange(len(lengths)), lengths)  # (T,)
    table[0] = np.concatenate([item.token_ids for item in items])
    table[1] = np.arange(num_tokens) - starts[sequence] + layout.position_offset
    table[2] = sequence
    table[3] = 0
    if layout.has_type_ids:
        for item, start in zip(items, starts, strict=False):
            if item.type_ids is not None:
                table[3, start : start + len(item.token_ids)] = item.type_ids
    input_ids, position_ids, seq_idx, type_ids = host.to(device, non_blocking=True).unsqueeze(1)  # (1, T)
    cu_seq_lens = host_starts.to(device, non_blocking=True)
    features: dict[str, Any] = {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "seq_idx": seq_idx,
        "cu_seq_lens_q": cu_seq_lens,
        "packed_layout": PackedLayout(runs_of_equal_length(lengths), cu_seq_lens, lengths[-1]),
        "modality": "text",
    }
    if layout.has_type_ids:
        features["token_type_ids"] = type_ids
    return features if layout.reads == "flat" else _head_features(features, items, starts, layout, device)


def _head_features(
    features: dict[str, Any],
    items: Sequence[Encoded],
    starts: np.ndarray[Any, np.dtype[np.int64]],
    layout: InputLayout,
    device: torch.device,
) -> dict[str, Any]:
    """What the head sees: a (B, k) batch of the tokens whose rows it reads, and the flat row beside it."""
    lengths = np.diff(starts)  # (B,)
    width = int(lengths[-1]) if layout.reads == "all" else 1
    host = _staging_buffer((3, len(items), width), torch.int64, device)
    ids, mask, places = host.numpy()  # (B, k) each; places: of the tokens in the flat row
    ids[:] = layout.pad_token_id
    mask[:] = np.arange(width) < lengths[:, None]
    if layout.reads == "all":
        places[:] = starts[:-1, None] + np.minimum(np.arange(width), lengths[:, None] - 1)
    elif layout.reads == "first":
        places[:, 0] = starts[:-1]
    else:
        places[:, 0] = starts[:-1] + [_last_token(item, layout.skipped_token_id) for item in items]
    flat_ids = np.concatenate([item.token_ids for item in items])
    ids[mask == 1] = flat_ids[places[mask == 1]]
    input_ids, attention_mask, gather = host.to(device, non_blocking=True)
    row = {name: value for name, value in features.items() if name not in ("modality", "seq_idx")}
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "packed_row": PackedRow(row, gather),
        "modality": "text",
        **layout.constants,
    }


def _last_token(item: Encoded, skipped_token_id: int | None) -> int:
    """As transformers' decoder classifiers find it: the last that is not padding, the first if all are."""
    if skipped_token_id is None:
        return len(item.token_ids) - 1
    kept = np.flatnonzero(item.token_ids != skipped_token_id)
    return int(kept[-1]) if len(kept) else 0


def padded_features(items: Sequence[Encoded], layout: InputLayout, device: torch.device) -> dict[str, Any]:
    """A (B, S) block, padded to the longest item."""
    width = max(1, *(len(item.token_ids) for item in items))
    shape = (len(items), width)
    host = _staging_buffer((4, *shape), torch.int64, device)
    table = host.numpy()
    table[:] = 0
    table[0] = layout.pad_token_id
    for row, item in enumerate(items):
        length = len(item.token_ids)
        first = width - length if layout.pads_left else 0
        table[0, row, first : first + length] = item.token_ids
        num_attended = length if item.num_attended is None else item.num_attended
        table[1, row, first : first + num_attended] = 1
        table[3, row, first + num_attended : first + length] = 1
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
    if any(item.num_attended is not None for item in items):
        features["query_expansion_positions"] = expansions.bool()
    return features


def _bag_features(items: Sequence[Encoded], device: torch.device) -> dict[str, Any]:
    """What StaticEmbedding takes: all tokens end to end, and where each text starts."""
    starts = np.cumsum([0, *(len(item.token_ids) for item in items)])[:-1]
    ids = np.concatenate([item.token_ids for item in items]).astype(np.int64)
    return {
        "input_ids": torch.from_numpy(ids).to(device),
        "offsets": torch.from_numpy(starts).to(device),
        "modality": "text",
    }


def _collated_blocks(items: Sequence[Encoded], layout: InputLayout, device: torch.device) -> Iterator[Block]:
    """Inputs that the model's own preprocessing made one by one; those of equal shapes go together."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for position, item in enumerate(items):
        alike.setdefault(_shape_key(item, may_pad=layout.may_pad), []).append(position)
    for positions in alike.values():
        positions.sort(key=lambda at: len(items[at].token_ids))
        yield Block(positions, _collate([items[at] for at in positions], layout, device))


def _shape_key(item: Encoded, *, may_pad: bool) -> tuple[Any, ...]:
    """Equal for items that can be put together: the same features, and arrays of the same shape but for
    tokens and for the leading dimension."""
    assert item.features is not None
    return tuple(
        (name, () if isinstance(each, list) or (may_pad and _is_per_token(name, item)) else each.shape[1:])
        for name, each in sorted(item.features.items())
    )


def _is_per_token(name: str, item: Encoded) -> bool:
    """Whether an array has one column per token, so that a batch of them is padded."""
    assert item.features is not None
    ids, each = item.features.get("input_ids"), item.features[name]
    if not isinstance(ids, np.ndarray) or not isinstance(each, np.ndarray):
        return False
    return ids.ndim == 2 and each.shape == ids.shape


def _collate(items: Sequence[Encoded], layout: InputLayout, device: torch.device) -> dict[str, Any]:
    features: dict[str, Any] = {"modality": str(items[0].recipe.modality), **layout.constants}
    for name in items[0].features or ():
        arrays: list[Any] = [item.features[name] for item in items if item.features is not None]
        if isinstance(arrays[0], list):
            features[name] = [member for each in arrays for member in each]
            continue
        if _is_per_token(name, items[0]):
            fill = layout.pad_token_id if name == "input_ids" else 0
            arrays = _padded(arrays, fill, pads_left=layout.pads_left)
        features[name] = torch.from_numpy(np.concatenate(arrays)).to(device)
    if layout.form == "packed" and "attention_mask" in features:
        features["key_mask"] = features["attention_mask"]
    return features


def _padded(arrays: list[Any], fill: int, *, pads_left: bool) -> list[Any]:
    width = max(array.shape[1] for array in arrays)
    missing = [width - array.shape[1] for array in arrays]
    return [
        np.pad(array, ((0, 0), (num, 0) if pads_left else (0, num)), constant_values=fill)
        for array, num in zip(arrays, missing, strict=True)
    ]


def _staging_buffer(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Host memory; pinned for CUDA, so that a copy neither waits for the device nor is waited for.

    It may be let go while the copy is under way: torch hands it out again only when the copy is done.
    """
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


def first_position(network: torch.nn.Module) -> int:
    """RoBERTa's learned positions start behind its padding index; all others at 0.

    Its embeddings are told by having both a padding index and a table of positions.
    """
    for module in network.modules():
        padding_idx = getattr(module, "padding_idx", None)
        if isinstance(padding_idx, int) and isinstance(
            getattr(module, "position_embeddings", None), torch.nn.Embedding
        ):
            return padding_idx + 1
    return 0
