"""Limit the length of texts: a model's files may allow more tokens than its network has positions for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Transformer

from infinity_emb.backends.torch.st_introspection import find_transformers
from infinity_emb.errors import StartupError

logger = logging.getLogger("infinity_emb")

# Attributes with tables of absolute positions in transformers' networks; rotary and relative positions have
# no table.
_TABLE_NAMES = ("position_embeddings", "position_embedding", "wpe", "embed_positions", "pos_embed")
_MEDIA = ("vision", "visual", "image", "audio", "video")


def limit_to_positions(model: BaseModel) -> None:
    """Lower each limit of a model's texts to the positions of its network.

    Raises StartupError for a query expansion that is longer.
    """
    for transformer in find_transformers(model):
        num_positions = count_positions(transformer.model)
        if num_positions is not None and transformer.tokenizer is not None:
            _limit_transformer(transformer, num_positions)


def count_positions(network: torch.nn.Module) -> int | None:
    """Return the number of tokens that the network has positions for; None without a table of positions.

    RoBERTa's positions begin after its padding index, BART's and OPT's after an offset.
    """
    counts = []
    for name, module in network.named_modules():
        if any(word in name for word in _MEDIA):
            continue
        for table in _find_tables(module):
            padding_idx = getattr(module, "padding_idx", None)
            first = padding_idx + 1 if isinstance(padding_idx, int) else getattr(table, "offset", 0)
            counts.append(int(table.num_embeddings) - int(first))
    return min(counts, default=None)


def _find_tables(module: torch.nn.Module) -> Iterator[torch.nn.Embedding]:
    for name in _TABLE_NAMES:
        table = getattr(module, name, None)
        if isinstance(table, torch.nn.Embedding):
            yield table


def _limit_transformer(transformer: Transformer, num_positions: int) -> None:
    expansion = transformer.query_expansion
    if expansion is not None and expansion["length"] > num_positions:
        raise StartupError(
            f"the model's files fill queries up to {expansion['length']} tokens, but its network has"
            f" {num_positions} positions; lower query_expansion in sentence_bert_config.json"
        )
    limit = transformer.max_seq_length
    if limit is None or limit > num_positions:
        asked = "no limit" if limit is None or limit > 10**9 else f"{limit} tokens"
        logger.info("texts are cut at %d tokens, the network's positions; files: %s", num_positions, asked)
        transformer.max_seq_length = num_positions
    for name in ("query_length", "document_length"):
        own: int | None = getattr(transformer, name)
        if own is not None and own > num_positions:
            setattr(transformer, name, num_positions)
    options: Any = transformer.processing_kwargs.get("text") or {}
    if options.get("max_length", 0) > num_positions:
        options["max_length"] = num_positions
