"""Compute the encoder of a model's network with CTranslate2; the head, if there is one, remains torch's."""

from __future__ import annotations

import copy
from typing import Any

import ctranslate2
import numpy as np
import torch
from ctranslate2 import StorageView
from sentence_transformers.base.modules import Transformer
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from infinity_emb.backends.external.network import ExternalNetwork, check_ids, translate_out_of_memory
from infinity_emb.backends.torch.input_layout import get_first_position


class Ct2Network(ExternalNetwork):
    """One encoder of CTranslate2, and the head of the network that it was converted from.

    device: of the head: the encoder's device if torch supports it, else the CPU.
    """

    padding_reason = "CTranslate2 takes padded batches"

    def __init__(
        self,
        encoder: ctranslate2.Encoder,
        transformer: Transformer,
        device: torch.device,
        number_format: torch.dtype,
    ) -> None:
        super().__init__(transformer, device, number_format)
        network: Any = transformer.model
        self._network = _with_encoder(network, _Encoder(encoder, network.base_model, device)).to(device)

    def compute(self, features: dict[str, Any]) -> Tensor:
        """Compute the output of the network from token ids, as float32."""
        given = {
            name: features[name]
            for name in ("input_ids", "attention_mask", "token_type_ids")
            if features.get(name) is not None
        }
        rows: Tensor = self._network(**given, return_dict=True)[self.output_name]
        return rows.float()


def _with_encoder(network: PreTrainedModel, encoder: _Encoder) -> torch.nn.Module:
    """Return a copy of the network with another encoder; both share the head."""
    if network.base_model is network:
        return encoder
    changed = copy.copy(network)
    changed._modules = dict(network._modules)
    setattr(changed, network.base_model_prefix, encoder)
    return changed


class _Encoder(torch.nn.Module):
    """Replacement for transformers' encoder beneath a head.

    original: the replaced encoder; its pooler, which some heads read, is still used.
    """

    def __init__(self, encoder: ctranslate2.Encoder, original: Any, device: torch.device) -> None:
        super().__init__()
        self._encoder = encoder
        self._device = device
        self.pooler = getattr(original, "pooler", None)
        first_position = get_first_position(original)
        # RoBERTa's positions skip this token, CTranslate2's do not; -1 for networks that skip none.
        self._uncounted_id = first_position - 1
        self._num_words = int(original.get_input_embeddings().num_embeddings)
        self._num_segments = _count_rows(original, "token_type_embeddings")
        self._num_positions = _count_rows(original, "position_embeddings") - first_position

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        **unused: Any,
    ) -> BaseModelOutputWithPooling:
        """Return what the encoder of transformers returns, in float32.

        (B, S) int64 each; padding, where the mask is 0, is on the right.
        """
        check_ids(input_ids, self._num_words, "token")
        segments = None
        if self._num_segments and token_type_ids is not None and token_type_ids.any():
            check_ids(token_type_ids, self._num_segments, "segment")
            segments = token_type_ids
        # A text without tokens keeps the row of its padding, which is never read.
        lengths = attention_mask.sum(dim=1).clamp(min=1)  # (B,)
        is_uncounted = attention_mask.bool() & (input_ids == self._uncounted_id)
        if is_uncounted.any():
            rows = self._compute_reordered(input_ids, segments, lengths, is_uncounted)
        else:
            rows = self._compute(input_ids, segments, lengths)  # (B, S, H)
        pooled = None if self.pooler is None else self.pooler(rows)
        return BaseModelOutputWithPooling(last_hidden_state=rows, pooler_output=pooled)

    def _compute_reordered(
        self, ids: Tensor, segments: Tensor | None, lengths: Tensor, is_uncounted: Tensor
    ) -> Tensor:
        """Compute texts with tokens that take no position, by moving those tokens behind the others.

        The others then have the same positions as in the network, and attention does not depend on the order.
        The segments of the moved tokens replace CTranslate2's positions; see `read_roberta`.
        """
        columns = torch.arange(ids.shape[1], device=ids.device)
        is_masked = columns >= lengths[:, None]  # (B, S)
        order = (is_uncounted.int() + 2 * is_masked.int()).argsort(dim=1, stable=True)
        segments = torch.zeros_like(ids) if segments is None else segments.gather(1, order)
        replacing = self._num_segments + segments * self._num_positions + columns
        segments = torch.where(is_uncounted.gather(1, order), replacing, segments)
        moved = self._compute(ids.gather(1, order), segments, lengths)  # (B, S, H)
        return torch.empty_like(moved).scatter_(1, order[..., None].expand_as(moved), moved)

    def _compute(self, ids: Tensor, segments: Tensor | None, lengths: Tensor) -> Tensor:
        """Return (B, S, H) float32. Raise torch.OutOfMemoryError, which leads to smaller batches."""
        # CTranslate2 takes segments as lists only.
        listed = None if segments is None else segments.tolist()
        with translate_out_of_memory():
            answer = self._encoder.forward_batch(_as_storage(ids), _as_storage(lengths), listed)
        return _as_tensor(answer.last_hidden_state, self._device)


def _count_rows(network: Any, name: str) -> int:
    """Return the size of a table of embeddings; 0 if the network has none of that name."""
    table = getattr(getattr(network, "embeddings", None), name, None)
    return 0 if table is None else int(table.num_embeddings)


def _as_storage(ids: Tensor) -> StorageView:
    """Share the memory with CTranslate2; it uses another CUDA stream, so wait until the ids are written."""
    ids = ids.to(torch.int32).contiguous()
    if ids.device.type == "cuda":
        torch.cuda.current_stream(ids.device).synchronize()
        return StorageView.from_array(ids)
    return StorageView.from_array(ids.numpy())


def _as_tensor(rows: StorageView, device: torch.device) -> Tensor:
    """Return a float32 tensor, without a copy if CTranslate2 computes in float32 on this device."""
    if rows.dtype == ctranslate2.DataType.bfloat16:  # numpy has no such dtype
        rows = rows.to(ctranslate2.DataType.float32)
    if device.type == "cuda":
        # Wait for the copy: CTranslate2, which uses another stream, may reuse the memory for its next batch.
        copied = torch.as_tensor(rows, device=device).to(torch.float32, copy=True)
        torch.cuda.current_stream(device).synchronize()
        return copied
    if rows.device != "cpu":
        rows = rows.to_device(ctranslate2.Device.cpu)
    return torch.from_numpy(np.asarray(rows)).float()
