"""Convert T5's encoder to CTranslate2's model specification, with its weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ctranslate2.specs.common_spec import Activation
from ctranslate2.specs.transformer_spec import (
    FeedForwardSpec,
    TransformerEncoderLayerSpec,
    TransformerEncoderSpec,
)


def make_t5_spec(network: Any, activation: Activation) -> TransformerEncoderSpec:
    """Return the specification with all weights.

    network: T5EncoderModel of transformers. It uses RMS pre-normalization without biases, and adds the
    relative position bias of the first layer to the attention of all layers.
    """
    config, stack = network.config, network.encoder
    spec = TransformerEncoderSpec(
        len(stack.block),
        config.num_heads,
        pre_norm=True,
        activation=activation,
        ffn_glu=config.is_gated_act,
        relative_attention_bias=True,
        rms_norm=True,
    )
    spec.embeddings[0].weight = network.shared.weight
    spec.layer_norm.gamma = stack.final_layer_norm.weight
    positions = stack.block[0].layer[0].SelfAttention
    for layer_spec, block in zip(spec.layer, stack.block, strict=True):
        attention, feed_forward = block.layer
        _fill_attention(layer_spec, attention, positions)
        _fill_feed_forward(layer_spec.ffn, feed_forward, is_gated=config.is_gated_act)
    return spec


def _fill_attention(spec: TransformerEncoderLayerSpec, layer: Any, positions: Any) -> None:
    attention, attention_spec = layer.SelfAttention, spec.self_attention
    qkv, output = attention_spec.linear
    qkv.weight = torch.cat([attention.q.weight, attention.k.weight, attention.v.weight])  # (3 H, H)
    output.weight = attention.o.weight
    attention_spec.layer_norm.gamma = layer.layer_norm.weight
    attention_spec.queries_scale = 1.0  # products of queries and keys are not scaled
    attention_spec.relative_attention_bias = positions.relative_attention_bias.weight
    attention_spec.relative_attention_max_distance = np.int32(positions.relative_attention_max_distance)


def _fill_feed_forward(spec: FeedForwardSpec, layer: Any, *, is_gated: bool) -> None:
    dense = layer.DenseReluDense
    if is_gated:
        spec.linear_0.weight, spec.linear_0_noact.weight = dense.wi_0.weight, dense.wi_1.weight
    else:
        spec.linear_0.weight = dense.wi.weight
    spec.linear_1.weight = dense.wo.weight
    spec.layer_norm.gamma = layer.layer_norm.weight
