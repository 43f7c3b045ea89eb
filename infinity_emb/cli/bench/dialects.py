"""Requests of the APIs that embedding servers implement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Body = dict[str, Any]


class Dialect(NamedTuple):
    """One vendor's routes.

    embed, rerank: model name and texts → body; of a ranking, the first text is the query.
    """

    embed_path: str
    rerank_path: str
    embed: Callable[[str, Sequence[str]], Body]
    rerank: Callable[[str, Sequence[str]], Body]
    needs_model: bool


def _embed_openai(model: str, texts: Sequence[str]) -> Body:
    return {"model": model, "input": texts, "encoding_format": "base64"}  # as OpenAI's client asks


def _rerank_jina(model: str, texts: Sequence[str]) -> Body:
    return {"model": model, "query": texts[0], "documents": texts[1:]}


def _embed_tei(_: str, texts: Sequence[str]) -> Body:
    return {"inputs": texts, "truncate": True}


def _rerank_tei(_: str, texts: Sequence[str]) -> Body:
    return {"query": texts[0], "texts": texts[1:], "truncate": True}


def _embed_cohere(model: str, texts: Sequence[str]) -> Body:
    return {"model": model, "texts": texts, "input_type": "search_document", "embedding_types": ["float"]}


DIALECTS: Mapping[str, Dialect] = {
    # OpenAI has no rerank route; servers of its API implement Jina's.
    "openai": Dialect("/v1/embeddings", "/v1/rerank", _embed_openai, _rerank_jina, True),
    "tei": Dialect("/embed", "/rerank", _embed_tei, _rerank_tei, False),
    "cohere": Dialect("/v2/embed", "/v2/rerank", _embed_cohere, _rerank_jina, True),
}
