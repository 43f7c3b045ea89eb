"""Folders of classifiers and rerankers: with a classification head, or language models that say yes or no."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.support.small_models.architectures import MAX_LENGTH, save_network


def save_small_classifier(
    folder: Path,
    model_type: str,
    *,
    num_labels: int = 1,
    max_length: int = MAX_LENGTH,
    dtype: torch.dtype = torch.float32,
    spread: float | None = None,
    **config_values: Any,
) -> Path:
    """A folder of transformers with a classification head: a reranker with one label, else a classifier.

    T5's activations grow so large with spread weights that float32 itself is coarser than the tolerances.
    """
    return save_network(
        folder,
        model_type,
        AutoModelForSequenceClassification,
        max_length=max_length,
        dtype=dtype,
        spread=(1.5 if model_type == "t5" else 4) if spread is None else spread,
        num_labels=num_labels,
        **config_values,
    )


def save_small_yes_no_reranker(
    folder: Path,
    model_type: str,
    *,
    chat_template: str | None = None,
    max_length: int = MAX_LENGTH,
    spread: float = 4,
) -> Path:
    """A language model; as a reranker it is known by its folder's name, which must say so."""
    save_network(folder, model_type, AutoModelForCausalLM, max_length=max_length, spread=spread)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    return folder
