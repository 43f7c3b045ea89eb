"""Choose the shapes for which TensorRT builds an engine at start.

Without them it builds another engine, which takes minutes, whenever a batch exceeds the shapes seen so far.
"""

from __future__ import annotations

from typing import NamedTuple

from infinity_emb.backends.external.graph_io import INPUT_NAMES
from infinity_emb.config.model_options import LoadOptions

# Tokens of a batch. An engine reserves memory for the largest shape of its profile, so the profile covers
# usual batches on a busy GPU, not the largest number of texts times the largest number of tokens.
_MAX_TOKENS = 65_536
# Pairs of tokens in attention that TensorRT does not fuse: 4 GB with 16 heads in float16.
_MAX_PAIRS = 2**27
# Vocabulary scores of all tokens of a sparse model: 4 GB in float32.
_MAX_SCORES = 2**30
# The shape that the engine is optimized for: a batch of a busy server.
_USUAL_LENGTH = 128
_USUAL_TOKENS = 16_384


class ShapeLimits(NamedTuple):
    """The largest batch that an engine is built for; it computes all smaller ones, too."""

    max_items: int
    max_tokens: int


def choose_shape_limits(max_tokens: int, args: LoadOptions, *, num_scores: int = 1) -> ShapeLimits | None:
    """Choose shapes for texts up to the model's limit; larger batches are computed in parts.

    max_tokens: of the longest text.
    num_scores: values that the network returns per token; 1 if it returns hidden states.
    Returns None if even one text would take too much memory.
    """
    if max_tokens**2 > _MAX_PAIRS:
        return None
    # Independent of --max-batch-tokens: a reloaded model gets the measured value, and would need another
    # engine.
    budget = min(_MAX_TOKENS, _MAX_SCORES // num_scores)
    max_items = min(args.batch_size, budget // max_tokens, _MAX_PAIRS // max_tokens**2)
    return ShapeLimits(max(1, max_items), max_tokens)


def make_profile_options(limits: ShapeLimits) -> dict[str, str]:
    """Return TensorRT's options for these shapes, for every input that a graph may have.

    Source: https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html
    """
    length = min(_USUAL_LENGTH, limits.max_tokens)
    shapes = {
        "min": ShapeLimits(1, 1),
        "opt": ShapeLimits(min(limits.max_items, _USUAL_TOKENS // length), length),
        "max": limits,
    }
    return {
        f"trt_profile_{name}_shapes": ",".join(f"{each}:{items}x{tokens}" for each in INPUT_NAMES)
        for name, (items, tokens) in shapes.items()
    }
