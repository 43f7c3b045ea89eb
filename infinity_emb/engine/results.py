"""Options of a request to an engine, and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy.typing as npt

from infinity_emb.items import Float32Array, SparseVector
from infinity_emb.types import EmbeddingDtype, OutputName, TokenIdPolicy, Truncation


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions:
    """Options of an embedding request; None means the default of the model or of the server."""

    prompt: str | None = None  # prepended to each text
    prompt_name: str | None = None  # one of the model's prompts
    input_type: str | None = None  # query, document, or a task or prompt of the model
    dimensions: int | None = None  # truncate vectors to this many values and rescale them to length 1
    embedding_dtype: EmbeddingDtype | None = None
    normalize: bool | None = None  # scale vectors to length 1, or return them as the model computes them
    token_ids: TokenIdPolicy | None = None
    outputs: tuple[OutputName, ...] | None = None
    truncation: Truncation = "model"
    max_tokens: int | None = None  # limit per text, where lower than the model's
    chunking: bool = False  # split a text that is over the limit and average the vectors of its chunks


DEFAULT_OPTIONS = EmbedOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankOptions:
    """Options of a rerank request.

    raw_scores: skip the model's activation function.
    top_n: return only this many documents; None and 0 return all.
    prompt: the instruction of a reranker that takes one, or what an embedder prepends to the query.
    max_tokens: limit per pair, or per text of an embedder, where lower than the model's.
    max_query_tokens, max_document_tokens: cut the texts to their first tokens before anything else.
    positions: the numbers by which errors name the documents; None means their indices.
    """

    raw_scores: bool = False
    top_n: int | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    truncation: Truncation = "model"
    max_tokens: int | None = None
    max_query_tokens: int | None = None
    max_document_tokens: int | None = None
    positions: Sequence[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyOptions:
    """Options of a classification request.

    raw_scores: return logits instead of softmax scores, or sigmoid scores of a multi-label model.
    max_tokens: limit per text or pair, where lower than the model's.
    token_ids: None means the policy that the model is served with.
    """

    raw_scores: bool = False
    truncation: Truncation = "model"
    max_tokens: int | None = None
    token_ids: TokenIdPolicy | None = None


class Span(NamedTuple):
    """The range of characters [start, end) of a passage in the joined text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """Outputs of N inputs, in order; None for an output that was not requested.

    dense: (D,) each, in the requested dtype.
    multivector: (n, D) each, one vector per token, in the requested dtype.
    tokens: (n, H) float32 each, the last hidden states before pooling and projection.
    spans: of late chunking, one per vector.
    """

    num_tokens: int
    dense: Sequence[npt.NDArray[Any]] | None = None
    sparse: Sequence[SparseVector] | None = None
    multivector: Sequence[npt.NDArray[Any]] | None = None
    tokens: Sequence[Float32Array] | None = None
    spans: Sequence[Span] | None = None

    def to_tuple(self) -> tuple[list[npt.NDArray[Any]], int]:
        """Return the dense vectors, or else the multi-vectors, and the number of tokens."""
        vectors = self.dense if self.dense is not None else self.multivector
        return list(vectors or ()), self.num_tokens

    def get(self, output: OutputName) -> Sequence[Any]:
        """Return an output that was requested. Raises LookupError if it was not."""
        vectors: Sequence[Any] | None = getattr(self, output)
        if vectors is None:
            raise LookupError(f"output {output!r} was not requested")
        return vectors


class Score(NamedTuple):
    """One score and its position in the request."""

    position: int
    score: float


def rank_scores(scores: Float32Array, top_n: int | None = None) -> list[Score]:
    """Sort (N,) float32 scores in descending order; equal ones keep their order."""
    order = (-scores).argsort(kind="stable")[: top_n if top_n and top_n > 0 else None]
    return [Score(int(index), float(scores[index])) for index in order]
