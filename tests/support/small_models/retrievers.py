"""Folders that SparseEncoder and MultiVectorEncoder load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder, SparseEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sparse_encoder.modules import SpladePooling
from transformers import AutoModelForMaskedLM

from tests.support.small_models.architectures import HIDDEN_SIZE, MAX_LENGTH, save_network

TOKEN_DIM = 16


def splade_modules(
    folder: Path, model_type: str, *, strategy: Any = "max", activation: Any = "relu"
) -> list[torch.nn.Module]:
    """A transformer with its language model head, and the pooling; the weights are saved in `folder`."""
    # Not spread: spread logits are so large that most of the vocabulary would be in every vector.
    save_network(folder, model_type, AutoModelForMaskedLM, spread=1)
    transformer = Transformer(str(folder), max_seq_length=MAX_LENGTH, transformer_task="fill-mask")
    return [transformer, SpladePooling(strategy, activation)]


def save_sparse_encoder(folder: Path, modules: Sequence[torch.nn.Module], **options: Any) -> Path:
    """What SparseEncoder saves of these modules."""
    torch.manual_seed(0)
    SparseEncoder(modules=list(modules), device="cpu", **options).save_pretrained(str(folder))
    return folder


def save_small_splade(folder: Path, model_type: str, **options: Any) -> Path:
    """`options` are those of `splade_modules`."""
    return save_sparse_encoder(folder / "model", splade_modules(folder / "backbone", model_type, **options))


def save_small_late_interaction(
    folder: Path,
    model_type: str,
    *,
    skiplist_words: Sequence[str] = (),
    last_modules: Sequence[torch.nn.Module] = (),
    prompts: dict[str, str] | None = None,
    **transformer_options: Any,
) -> Path:
    """Token vectors of `TOKEN_DIM` values and length 1.

    transformer_options: `query_length`, `document_length`, `query_expansion`.
    """
    save_network(folder / "backbone", model_type)
    torch.manual_seed(0)
    modules = [
        Transformer(str(folder / "backbone"), max_seq_length=MAX_LENGTH, **transformer_options),
        Dense(
            HIDDEN_SIZE,
            TOKEN_DIM,
            bias=False,
            activation_function=torch.nn.Identity(),
            module_input_name="token_embeddings",
        ),
        MultiVectorMask(skiplist_words=list(skiplist_words)),
        Normalize(module_input_name="token_embeddings"),
        *last_modules,
    ]
    MultiVectorEncoder(modules=modules, prompts=prompts, device="cpu").save_pretrained(str(folder / "model"))
    return folder / "model"
