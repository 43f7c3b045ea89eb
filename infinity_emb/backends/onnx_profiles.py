"""Which shapes TensorRT builds an engine for, once, at start.

It would build another one, for minutes, whenever a batch leaves the shapes seen so far. Pure rules; knows
nothing of sessions or graphs.
"""

from __future__ import annotations

from typing import NamedTuple

from infinity_emb.backends.graph_inputs import INPUT_NAMES
from infinity_emb.config import EngineArgs

# An engine sets memory aside for the largest batch of its box, whether one comes or not: so a batch of that
# size is what a busy GPU computes, and not so many texts as a batch may have, each as long as may be.
_MAX_TOKENS = 65_536
# The same for attention where TensorRT does not fuse it, in pairs of tokens: 4 GB with 16 heads in float16.
_MAX_PAIRS = 2**27
# The same for scores of all words, which sparse models have for each token: 4 GB in float32.
_MAX_SCORES = 2**30
# What it makes fastest: a batch of a busy server.
_USUAL_LENGTH = 128
_USUAL_TOKENS = 16_384


class Box(NamedTuple):
    """The largest batch that an engine is built for; all smaller ones are inside."""

    max_items: int
    max_tokens: int


def choose_box(max_tokens: int, args: EngineArgs, *, num_scores: int = 1) -> Box | None:
    """One for texts up to the model's longest, of which it has one at least; batches of more have parts.

    max_tokens: of the longest text.
    num_scores: that the network answers for each token; 1 where it answers a row of its own width.
    Returns None where that alone would take too much memory.
    """
    if max_tokens**2 > _MAX_PAIRS:
        return None
    # Not by --max-batch-tokens: a model that is loaded again is given the size that was measured, and another
    # box is another engine.
    budget = min(_MAX_TOKENS, _MAX_SCORES // num_scores)
    max_items = min(args.batch_size, budget // max_tokens, _MAX_PAIRS // max_tokens**2)
    return Box(max(1, max_items), max_tokens)


def profile_options(box: Box) -> dict[str, str]:
    """TensorRT's options for the box. They name every input that a graph may have; others are passed over.

    Source: https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html
    """
    length = min(_USUAL_LENGTH, box.max_tokens)
    shapes = {"min": Box(1, 1), "opt": Box(min(box.max_items, _USUAL_TOKENS // length), length), "max": box}
    return {
        f"trt_profile_{name}_shapes": ",".join(f"{each}:{items}x{tokens}" for each in INPUT_NAMES)
        for name, (items, tokens) in shapes.items()
    }
