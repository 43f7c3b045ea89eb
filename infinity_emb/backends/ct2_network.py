"""A model's network whose encoder CTranslate2 computes; the head on top, where there is one, is torch's own.

Knows nothing of files, or of how the encoder came about.
"""

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

from infinity_emb.backends.network_stand_in import StandIn, check_ids
from infinity_emb.backends.torch_device import is_out_of_memory


class Ct2Network(StandIn):
    """One encoder of CTranslate2, and the head of the network that it was made from.

    device: where the encoder computes, or the CPU; the head computes there.
    """

    why_padded = "CTranslate2 takes padded batches"

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
        """As the network does, from the ids; float32."""
        given = {
            name: features[name]
            for name in ("input_ids", "attention_mask", "token_type_ids")
            if features.get(name) is not None
        }
        rows: Tensor = self._network(**given, return_dict=True)[self.output_name]
        return rows.float()


def _with_encoder(network: PreTrainedModel, encoder: _Encoder) -> torch.nn.Module:
    """The same network with another encoder in it; the given one is left as it was, and shares its head."""
    if network.base_model is network:
        return encoder
    changed = copy.copy(network)
    changed._modules = dict(network._modules)
    setattr(changed, network.base_model_prefix, encoder)
    return changed


class _Encoder(torch.nn.Module):
    """What a head calls in the place of transformers' encoder.

    original: that one; its pooler, which some heads read, goes on computing.
    """

    def __init__(self, encoder: ctranslate2.Encoder, original: Any, device: torch.device) -> None:
        super().__init__()
        self._encoder = encoder
        self._device = device
        self.pooler = getattr(original, "pooler", None)
        self._num_words = int(original.get_input_embeddings().num_embeddings)
        segments = getattr(getattr(original, "embeddings", None), "token_type_embeddings", None)
        self._num_segments = int(segments.num_embeddings) if segments is not None else 0

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        **unused: Any,
    ) -> BaseModelOutputWithPooling:
        """What transformers' own answers, in float32.

        (B, S) int64 each; padding, where the mask is 0, is on the right.
        """
        check_ids(input_ids, self._num_words, "token")
        segments = None
        if self._num_segments and token_type_ids is not None and token_type_ids.any():
            check_ids(token_type_ids, self._num_segments, "segment")
            segments = token_type_ids.tolist()  # it takes nothing else
        # A text without tokens has the row of its padding, which nobody reads.
        lengths = attention_mask.sum(dim=1).clamp(min=1)  # (B,)
        try:
            answer = self._encoder.forward_batch(_as_storage(input_ids), _as_storage(lengths), segments)
        except (RuntimeError, MemoryError) as exc:
            if not is_out_of_memory(exc):
                raise
            raise torch.OutOfMemoryError(str(exc)) from exc  # which leads to smaller batches
        rows = _as_tensor(answer.last_hidden_state, self._device)  # (B, S, H)
        pooled = None if self.pooler is None else self.pooler(rows)
        return BaseModelOutputWithPooling(last_hidden_state=rows, pooler_output=pooled)


def _as_storage(ids: Tensor) -> StorageView:
    """Of the same device; CTranslate2 has a stream of its own and must find the ids written."""
    ids = ids.to(torch.int32).contiguous()
    if ids.device.type == "cuda":
        torch.cuda.current_stream(ids.device).synchronize()
        return StorageView.from_array(ids)
    return StorageView.from_array(ids.numpy())


def _as_tensor(rows: StorageView, device: torch.device) -> Tensor:
    """Float32, without a copy where CTranslate2 computes in float32 on this device."""
    if rows.dtype == ctranslate2.DataType.bfloat16:  # of which arrays know nothing
        rows = rows.to(ctranslate2.DataType.float32)
    if device.type == "cuda":
        # Done before CTranslate2, whose stream is another one, may give the memory to its next batch.
        copied = torch.as_tensor(rows, device=device).to(torch.float32, copy=True)
        torch.cuda.current_stream(device).synchronize()
        return copied
    if rows.device != "cpu":
        rows = rows.to_device(ctranslate2.Device.cpu)
    return torch.from_numpy(np.asarray(rows)).float()
