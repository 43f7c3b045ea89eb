"""What a request for embeddings asks for, and what it is answered. Plain values; knows nothing of engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy.typing as npt

from infinity_emb.backends.base import Rows, SparseRow
from infinity_emb.primitives import EmbeddingDtype, OutputName, Truncation


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions:
    """How texts are to be embedded; None leaves a choice to the model and to how it is served."""

    prompt: str | None = None  # put before each text
    prompt_name: str | None = None  # one of the model's own prompts
    input_type: str | None = None  # query, document, or a task or prompt of the model
    dimensions: int | None = None  # keep so many values of each vector, scaled back to length 1
    embedding_dtype: EmbeddingDtype | None = None
    outputs: tuple[OutputName, ...] | None = None
    truncation: Truncation = "model"
    max_tokens: int | None = None  # the limit of a text, where it is to be below the model's
    chunking: bool = False  # split a text that is over the limit and average its pieces' vectors


class Span(NamedTuple):
    """Where a passage stands in the text that was read: [start, end)."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """Vectors of N inputs, in order; None for what was not asked for.

    dense: (D,) each, in the asked number format.
    multivector: (n, D) each, one row per token, in the asked number format.
    tokens: (n, H) float32 each, one row per token, before all pooling and projection.
    spans: of passages that were read as one text, in characters of that text.
    """

    num_tokens: int
    dense: Sequence[npt.NDArray[Any]] | None = None
    sparse: Sequence[SparseRow] | None = None
    multivector: Sequence[npt.NDArray[Any]] | None = None
    tokens: Sequence[Rows] | None = None
    spans: Sequence[Span] | None = None


class Score(NamedTuple):
    """One document's score; `place` is where it stands in the request."""

    place: int
    score: float


def best_first(scores: Rows, top_n: int | None = None) -> list[Score]:
    """(N,) float32 → scores in descending order, equal ones in the order of the documents."""
    order = (-scores).argsort(kind="stable")[: top_n if top_n and top_n > 0 else None]
    return [Score(int(index), float(scores[index])) for index in order]
