"""Join, split and locate the passages of late chunking."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infinity_emb.backends.base import LoadedModel, Split
from infinity_emb.engine.results import Span
from infinity_emb.errors import InputTooLong, ModelNotDeployedError
from infinity_emb.preprocessing.chunking import check_num_pieces


def require_mean_pooling(name: str, model: LoadedModel) -> Split:
    """Return the model's splitter. Raises ModelNotDeployedError for a model without mean pooling."""
    if model.info.pooling != "mean" or model.split is None or model.info.outputs[0] != "dense":
        raise ModelNotDeployedError(
            f"late chunking averages token vectors, and model {name!r} pools by {model.info.pooling!r};"
            " embed the texts one by one"
        )
    return model.split


def join_passages(texts: list[str]) -> list[str]:
    """Append a space to each text, unless it ends in whitespace or is the last."""
    last = len(texts) - 1
    return [
        text if position == last or text[-1:].isspace() else f"{text} " for position, text in enumerate(texts)
    ]


def split_joined(joined: str, split: Split, *, chunk_size: int, max_tokens: int | None) -> list[str]:
    """Split a text into chunks of `chunk_size` tokens. Raises InputTooLong for one over the model's limit.

    The limit is checked first, as a text that long would be split into a very large number of chunks.
    """
    if max_tokens is not None:
        fitting = split(joined, prompt="", max_tokens=max_tokens, is_alone=False)
        num_tokens = sum(piece.num_tokens for piece in fitting)
        if num_tokens > max_tokens:
            raise InputTooLong(
                f"has {num_tokens} tokens, the limit is {max_tokens}; late chunking reads all of them at"
                " once, so send a shorter text",
                position=0,
            )
    chunks = split(joined, prompt="", max_tokens=chunk_size, is_alone=False)
    check_num_pieces(len(chunks), 1)
    return [joined[chunk.start : chunk.end] for chunk in chunks]


def locate_passages(passages: Sequence[str]) -> list[Span]:
    """Return the range of characters of each passage in the joined text."""
    ends = np.cumsum([len(passage) for passage in passages]).tolist()
    return [Span(end - len(passage), end) for end, passage in zip(ends, passages, strict=True)]
