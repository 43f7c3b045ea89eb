"""Convert BERT and similar networks to CTranslate2's model specification, with their weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from ctranslate2.specs.common_spec import Activation, EmbeddingsMerge, LayerNormSpec, LinearSpec
from ctranslate2.specs.transformer_spec import TransformerEncoderLayerSpec, TransformerEncoderSpec
from torch import Tensor


class _Layer(NamedTuple):
    """One layer's modules, in the order in which they compute."""

    query: torch.nn.Linear
    key: torch.nn.Linear
    value: torch.nn.Linear
    attention_output: torch.nn.Linear
    attention_norm: torch.nn.LayerNorm
    inner: torch.nn.Linear
    outer: torch.nn.Linear
    outer_norm: torch.nn.LayerNorm


class BertEncoder(NamedTuple):
    """Parts of an encoder, which have different names in each architecture.

    tables: token embeddings, and segment embeddings if the network has them; they are added.
    positions: (P, H), the first row being that of the first token.
    """

    tables: list[Tensor]
    positions: Tensor
    embedding_norm: torch.nn.LayerNorm
    layers: list[_Layer]
    num_heads: int


def read_bert(network: Any) -> BertEncoder:
    """Read a BERT encoder, whose positions count from 0."""
    return BertEncoder(
        [network.embeddings.word_embeddings.weight, network.embeddings.token_type_embeddings.weight],
        network.embeddings.position_embeddings.weight,
        network.embeddings.LayerNorm,
        list(_bert_layers(network)),
        network.config.num_attention_heads,
    )


def _bert_layers(network: Any) -> Iterator[_Layer]:
    for layer in network.encoder.layer:
        attention, after = layer.attention.self, layer.attention.output
        yield _Layer(
            attention.query,
            attention.key,
            attention.value,
            after.dense,
            after.LayerNorm,
            layer.intermediate.dense,
            layer.output.dense,
            layer.output.LayerNorm,
        )


def read_roberta(network: Any) -> BertEncoder:
    """Read a RoBERTa encoder, whose positions count from the padding token's id plus 1.

    The position of a padding token inside a text is its id. CTranslate2 adds the position of the place in any
    case, so the S segments are followed by S x P more: each replaces one place's position by that of padding.
    """
    encoder = read_bert(network)
    words, segments = encoder.tables  # (W, H), (S, H)
    padding_id = network.embeddings.padding_idx
    positions = encoder.positions[padding_id + 1 :]  # (P, H)
    replacing = segments[:, None] + encoder.positions[padding_id] - positions  # (S, P, H)
    tables = [words, torch.cat([segments, replacing.flatten(0, 1)])]
    return encoder._replace(tables=tables, positions=positions)


def read_distilbert(network: Any) -> BertEncoder:
    """Read a DistilBERT encoder: BERT without segments."""
    return BertEncoder(
        [network.embeddings.word_embeddings.weight],
        network.embeddings.position_embeddings.weight,
        network.embeddings.LayerNorm,
        list(_distilbert_layers(network)),
        network.config.n_heads,
    )


def _distilbert_layers(network: Any) -> Iterator[_Layer]:
    for layer in network.transformer.layer:
        yield _Layer(
            layer.attention.q_lin,
            layer.attention.k_lin,
            layer.attention.v_lin,
            layer.attention.out_lin,
            layer.sa_layer_norm,
            layer.ffn.lin1,
            layer.ffn.lin2,
            layer.output_layer_norm,
        )


def make_bert_spec(encoder: BertEncoder, activation: Activation) -> TransformerEncoderSpec:
    """Return the specification with all weights, for layers with post-normalization."""
    spec = TransformerEncoderSpec(
        len(encoder.layers),
        encoder.num_heads,
        pre_norm=False,
        activation=activation,
        num_source_embeddings=len(encoder.tables),
        embeddings_merge=EmbeddingsMerge.ADD,
        layernorm_embedding=True,
    )
    for table_spec, table in zip(spec.embeddings, encoder.tables, strict=True):
        table_spec.weight = table
    spec.position_encodings.encodings = encoder.positions
    _fill_norm(spec.layernorm_embedding, encoder.embedding_norm)
    for layer_spec, layer in zip(spec.layer, encoder.layers, strict=True):
        _fill_layer(layer_spec, layer)
    return spec


def _fill_layer(spec: TransformerEncoderLayerSpec, layer: _Layer) -> None:
    qkv, output = spec.self_attention.linear
    qkv.weight = torch.cat([layer.query.weight, layer.key.weight, layer.value.weight])  # (3 H, H)
    qkv.bias = torch.cat([layer.query.bias, layer.key.bias, layer.value.bias])
    _fill_linear(output, layer.attention_output)
    _fill_norm(spec.self_attention.layer_norm, layer.attention_norm)
    _fill_linear(spec.ffn.linear_0, layer.inner)
    _fill_linear(spec.ffn.linear_1, layer.outer)
    _fill_norm(spec.ffn.layer_norm, layer.outer_norm)


def _fill_linear(spec: LinearSpec, module: torch.nn.Linear) -> None:
    spec.weight, spec.bias = module.weight, module.bias


def _fill_norm(spec: LayerNormSpec, module: torch.nn.LayerNorm) -> None:
    spec.gamma, spec.beta = module.weight, module.bias
