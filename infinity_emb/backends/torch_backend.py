"""A sentence-transformers pipeline as a backend: flat batches where the model allows, padded ones elsewhere.

All modules, pooling included, are sentence-transformers' own; only the input is laid out here. Knows
nothing of how the model was chosen and loaded (`torch_loading.py`), nor of queues.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from infinity_emb.backends.base import Batch, Rows
from infinity_emb.backends.packed_attention import PackedLayout, runs_of_equal_length
from infinity_emb.backends.torch_cores import SharedCores
from infinity_emb.batching import groups_of_similar_length

# Features for our attention and for sentence-transformers' flat pooling; the model's forward must let
# them pass although they are not in its signature.
PACKED_FEATURES = frozenset({"packed_layout", "cu_seq_lens_q"})


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLayout:
    """How this model wants its input laid out."""

    is_packed: bool
    position_offset: int  # position of the first token; RoBERTa counts from padding_idx + 1
    has_type_ids: bool
    pad_token_id: int
    pads_left: bool
    prompt_length: int | None  # tokens of the prompt that pooling leaves out


class TorchBackend:
    """One copy of a model on one device.

    cores: what the replicas on a CPU share; torch's own setting where it is None.
    """

    def __init__(
        self, model: SentenceTransformer, *, layout: InputLayout, cores: SharedCores | None = None
    ) -> None:
        self.num_in_flight = 2 if model.device.type == "cuda" else 1
        self.shares_device = cores is not None
        self._model = model
        self._layout = layout
        self._device = model.device
        self._cores = cores

    def prepare_thread(self) -> None:
        """Set which GPU is this thread's current one."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    def launch(self, batch: Batch) -> TorchLaunched:
        """Queue the batch on the device; on a CPU compute it."""
        order = np.argsort(batch.lengths, kind="stable")  # ascending, as both paths want it
        share = self._cores.share(len(batch.token_ids)) if self._cores else contextlib.nullcontext()
        with torch.inference_mode(), share:
            rows = (
                self._forward_packed(batch, order)
                if self._layout.is_packed
                else self._forward_padded(batch, order)
            )
            return TorchLaunched.start(rows, order)

    def _forward_packed(self, batch: Batch, order: npt.NDArray[np.intp]) -> Tensor:
        lengths = [batch.lengths[position] for position in order]
        features = packed_features(batch, order, lengths, self._layout, self._device)
        return self._run_pipeline(features)

    def _forward_padded(self, batch: Batch, order: npt.NDArray[np.intp]) -> Tensor:
        lengths = [batch.lengths[position] for position in order]
        parts = [
            self._run_pipeline(padded_features(batch, order[start:end], self._layout, self._device))
            for start, end in groups_of_similar_length(lengths)
        ]
        return torch.cat(parts)  # (B, D)

    def _run_pipeline(self, features: dict[str, Any]) -> Tensor:
        if self._layout.prompt_length:
            features["prompt_length"] = self._layout.prompt_length
        rows: Tensor = self._model(features)["sentence_embedding"]  # (B, D)
        return rows[:, : self._model.truncate_dim] if self._model.truncate_dim else rows


@dataclass(frozen=True, slots=True)
class TorchLaunched:
    """Rows on their way to the host, in ascending order of length."""

    rows: Tensor  # (B, D) float32 on the host; complete once `copied` has passed
    order: npt.NDArray[np.intp]  # rows[k] belongs to item order[k]
    copied: torch.cuda.Event | None

    @classmethod
    def start(cls, rows: Tensor, order: npt.NDArray[np.intp]) -> TorchLaunched:
        """Begin the copy to the host without waiting for the device."""
        rows = rows.float()
        if rows.device.type != "cuda":
            return cls(rows.cpu(), order, None)
        host = torch.empty(rows.shape, dtype=torch.float32, pin_memory=True)
        host.copy_(rows, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no hint
        copied.record(torch.cuda.current_stream(rows.device))  # the current device may be another one
        return cls(host, order, copied)

    def collect(self) -> Rows:
        """Wait for the copy. Returns (B, D) float32 in the batch's order."""
        if self.copied is not None:
            self.copied.synchronize()
        result = np.empty(self.rows.shape, dtype=np.float32)
        result[self.order] = self.rows.numpy()
        return result


def packed_features(
    batch: Batch,
    order: npt.NDArray[np.intp],
    lengths: list[int],
    layout: InputLayout,
    device: torch.device,
) -> dict[str, Any]:
    """One flat row, shortest sequence first. lengths: in that order."""
    starts = np.cumsum([0, *lengths])  # (B + 1,), of the sequences in the row
    ends = np.cumsum(batch.lengths)  # (B,), of the sequences in the batch
    num_tokens = int(starts[-1])
    host_starts = _staging_buffer((len(starts),), torch.int32, device)
    host_starts.numpy()[:] = starts
    host = _staging_buffer((4, num_tokens), torch.int64, device)
    table = host.numpy()
    sequence = np.repeat(np.arange(len(lengths)), lengths)  # (T,)
    position = np.arange(num_tokens) - starts[sequence]  # (T,)
    source = position + (ends[order] - lengths)[sequence]  # (T,), where in the batch each token stands
    table[0] = batch.token_ids[source]
    table[1] = position + layout.position_offset
    table[2] = sequence
    table[3] = 0 if batch.type_ids is None else batch.type_ids[source]
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
    return features


def padded_features(
    batch: Batch, positions: npt.NDArray[np.intp], layout: InputLayout, device: torch.device
) -> dict[str, Any]:
    """A (B, S) block of the sequences at `positions`, padded to the longest of them."""
    ends = np.cumsum(batch.lengths)
    width = max(1, *(batch.lengths[position] for position in positions))
    shape = (len(positions), width)
    host = _staging_buffer((3, *shape), torch.int64, device)
    table = host.numpy()
    table[:] = 0
    table[0] = layout.pad_token_id
    for row, position in enumerate(positions):
        length = batch.lengths[position]
        source = slice(ends[position] - length, ends[position])
        target = slice(width - length, width) if layout.pads_left else slice(0, length)
        table[0, row, target] = batch.token_ids[source]
        table[1, row, target] = 1
        if batch.type_ids is not None:
            table[2, row, target] = batch.type_ids[source]
    input_ids, attention_mask, type_ids = host.to(device, non_blocking=True)  # (B, S)
    features = {"input_ids": input_ids, "attention_mask": attention_mask, "modality": "text"}
    if layout.has_type_ids:
        features["token_type_ids"] = type_ids
    return features


def _staging_buffer(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Host memory; pinned for CUDA, so that a copy neither waits for the device nor is waited for.

    It may be let go while the copy is under way: torch hands it out again only when the copy is done.
    """
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
