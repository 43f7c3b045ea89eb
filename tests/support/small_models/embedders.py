"""Folders that SentenceTransformer loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding

from tests.support.small_models.architectures import DECODERS, HIDDEN_SIZE, make_tokenizer, save_network


def save_pipeline(folder: Path, modules: Sequence[torch.nn.Module], **options: Any) -> Path:
    """What SentenceTransformer saves of these modules."""
    torch.manual_seed(0)
    SentenceTransformer(modules=list(modules), device="cpu", **options).save_pretrained(str(folder))
    return folder


def save_small_model(
    folder: Path,
    model_type: str,
    *,
    pooling_mode: str | None = None,
    normalize: bool = True,
    max_seq_length: int = 256,
    dtype: torch.dtype = torch.float32,
    prompts: dict[str, str] | None = None,
    default_prompt_name: str | None = None,
    include_prompt: bool = True,
    **config_values: Any,
) -> Path:
    """Transformer, pooling and mostly a normalisation. Decoders pool the last token, all others the mean."""
    backbone = save_network(
        folder / "backbone", model_type, max_length=max_seq_length, dtype=dtype, **config_values
    )
    transformer = Transformer(str(backbone), max_seq_length=max_seq_length, model_kwargs={"dtype": dtype})
    mode: Any = pooling_mode or ("lasttoken" if model_type in DECODERS else "mean")
    modules = [transformer, Pooling(HIDDEN_SIZE, pooling_mode=mode, include_prompt=include_prompt)]
    return save_pipeline(
        folder / "model",
        [*modules, Normalize()] if normalize else modules,
        prompts=prompts,
        default_prompt_name=default_prompt_name,
    )


def save_small_router(folder: Path) -> Path:
    """Queries by a table, documents by a transformer."""
    documents = SentenceTransformer(str(save_small_model(folder, "bert")), device="cpu")
    tokenizer: Any = make_tokenizer("roberta")
    static = StaticEmbedding(tokenizer._tokenizer, embedding_dim=HIDDEN_SIZE)
    router = Router.for_query_document([static], list(documents)[:2])
    return save_pipeline(folder / "router", [router, Normalize()])


def save_small_m3(folder: Path, model_type: str = "xlm-roberta") -> Path:
    """BGE-M3's folder: pooled by the first token, and two further heads in files of their own."""
    path = save_small_model(folder, model_type, pooling_mode="cls")
    tokenizer = make_tokenizer(model_type)
    tokenizer.eos_token = tokenizer.sep_token  # the published one calls its end token both
    tokenizer.save_pretrained(path)
    torch.manual_seed(1)
    torch.save(torch.nn.Linear(HIDDEN_SIZE, 1).state_dict(), path / "sparse_linear.pt")
    torch.save(torch.nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE).state_dict(), path / "colbert_linear.pt")
    return path
