"""Declare the models that are checked and measured, and the amount of work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

NUM_WORDS = 2000  # token ids that occur: 0 is padding, 1 unknown, each of the others one word
MAX_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Describe an architecture and its sizes."""

    name: str
    model_type: str
    sizes: dict[str, Any]
    small_sizes: dict[str, Any]  # for --small: the same architecture, tiny
    pooling: str = "mean"
    is_causal: bool = False

    def sizes_for(self, *, is_small: bool) -> dict[str, Any]:
        return self.small_sizes if is_small else self.sizes


def _bert(name: str, hidden: int, layers: int, heads: int) -> Shape:
    return Shape(
        name=name,
        model_type="bert",
        sizes=_sizes(hidden, layers, heads, 4 * hidden) | {"vocab_size": 30_522},
        small_sizes=_sizes(64, 2, 4, 128),
    )


def _sizes(hidden: int, layers: int, heads: int, intermediate: int) -> dict[str, Any]:
    return {
        "vocab_size": NUM_WORDS,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "max_position_embeddings": MAX_TOKENS,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "cls_token_id": 1,
        "sep_token_id": 1,
    }


_SMALL_DECODER = _sizes(64, 2, 4, 128) | {"num_key_value_heads": 2, "head_dim": 16}
SPEED_SHAPES = (
    _bert("bert-small", 512, 4, 8),
    _bert("bert-base", 768, 12, 12),
    _bert("bert-large", 1024, 24, 16),
    Shape(
        name="qwen3-0.6b",
        model_type="qwen3",
        sizes=_sizes(1024, 28, 16, 3072)
        | {
            "vocab_size": 151_669,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 32_768,
        },
        small_sizes=_SMALL_DECODER,
        pooling="lasttoken",
        is_causal=True,
    ),
)
# Only checked: local attention on both sides, and causal with grouped heads.
WINDOW_SHAPES = (
    Shape(
        name="modernbert-local",
        model_type="modernbert",
        sizes=_sizes(256, 4, 4, 512) | {"local_attention": 64, "global_attn_every_n_layers": 2},
        small_sizes=_sizes(64, 3, 4, 128) | {"local_attention": 16, "global_attn_every_n_layers": 2},
    ),
    Shape(
        name="mistral-window",
        model_type="mistral",
        sizes=_sizes(256, 4, 4, 512) | {"num_key_value_heads": 2, "head_dim": 64, "sliding_window": 48},
        small_sizes=_SMALL_DECODER | {"sliding_window": 12},
        pooling="lasttoken",
        is_causal=True,
    ),
)


# Only checked: models with a classification head, by the tokens that it reads; all have one score.
HEAD_SHAPES = (
    Shape(
        name="first-token-head",
        model_type="bert",
        sizes=_sizes(256, 4, 4, 512),
        small_sizes=_sizes(64, 2, 4, 128),
    ),
    Shape(
        name="last-token-head",
        model_type="qwen3",
        sizes=_sizes(256, 4, 4, 512) | {"num_key_value_heads": 2, "head_dim": 64},
        small_sizes=_SMALL_DECODER,
        is_causal=True,
    ),
    Shape(
        name="all-tokens-head",
        model_type="modernbert",
        sizes=_sizes(256, 4, 4, 512) | {"local_attention": 64, "classifier_pooling": "mean"},
        small_sizes=_sizes(64, 3, 4, 128) | {"local_attention": 16, "classifier_pooling": "mean"},
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Say how much is checked and measured."""

    dtype: torch.dtype  # of the speed part
    checked_lengths: tuple[int, ...]
    workloads: dict[str, tuple[int, ...]]  # name → lengths, over and over
    token_budgets: tuple[int, ...]  # tokens per packed batch; the best is reported
    batch_sizes: tuple[int, ...]  # texts per batch of sentence-transformers; the best is reported
    matmul_size: int
    num_repeats: int
    run_s: float  # about how long one timed run should take


_REAL_LENGTHS = {"32": (32,), "128": (128,), "512": (512,), "mixed": (16, 128, 32, 512, 64, 256)}
PLANS = {
    "cuda": Plan(
        dtype=torch.bfloat16,
        checked_lengths=(1, 7, 7, 33, 64, 128, 300),
        workloads=_REAL_LENGTHS,
        token_budgets=(4096, 8192, 16_384, 32_768, 65_536),
        batch_sizes=(32, 128, 512),
        matmul_size=8192,
        num_repeats=5,
        run_s=0.3,
    ),
    "cpu": Plan(
        dtype=torch.float32,
        checked_lengths=(1, 7, 7, 33, 64, 128, 300),
        workloads=_REAL_LENGTHS,
        token_budgets=(1024, 2048),
        batch_sizes=(8, 32),
        matmul_size=2048,
        num_repeats=3,
        run_s=3.0,
    ),
    "small": Plan(
        dtype=torch.float32,
        checked_lengths=(1, 5, 5, 14, 40),
        workloads={"16": (16,), "mixed": (4, 24, 8)},
        token_budgets=(128, 256),
        batch_sizes=(4, 16),
        matmul_size=256,
        num_repeats=3,
        run_s=0.01,
    ),
}
