"""`/rerank`: rank documents by relevance to a query."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import NamedTuple, TypeAlias

from starlette.responses import Response

from infinity_emb.concurrency import gather_or_cancel
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.results import RerankOptions
from infinity_emb.scheduling.request_context import current_memory
from infinity_emb.server.request_errors import body_error
from infinity_emb.server.requests.call import Call
from infinity_emb.server.requests.fields import choose_truncation, merge_aliases
from infinity_emb.server.responses.json_vectors import task_response
from infinity_emb.server.responses.sliced import CHARS_PER_VALUE, JsonList, mark_long_texts
from infinity_emb.server.routing import Endpoint, Form
from infinity_emb.server.schemas.rerank import (
    RERANK_EXAMPLES,
    RerankObjectsResponse,
    RerankRequest,
    RerankResponse,
)
from infinity_emb.types import RerankReturnType, Truncation

# Each is a request to the engine; thousands that start at once would hold the event loop.
MAX_QUERIES_AT_ONCE = 32

WriteDocument: TypeAlias = "Callable[[RerankReturnType], object] | None"


class Ranking(NamedTuple):
    """The documents of one request, best first.

    model: the served name.
    """

    documents: Sequence[RerankReturnType]
    num_tokens: int
    model: str


async def rerank(body: RerankRequest, call: Call) -> Response:
    """Rank documents by relevance to a query.

    Returns the documents best first. Rerankers score like `CrossEncoder`; other models compare vectors: by
    cosine, by the dot product of sparse vectors, or by MaxSim.
    """
    return await rerank_documents(body, call, write=get_text_writer(body))


async def rerank_v1(body: RerankRequest, call: Call) -> Response:
    """Rank documents by relevance to a query (v1).

    Works like `/rerank`, but returns each document as an object, as clients of Cohere, Jina, LiteLLM and vLLM
    read it, unless `return_documents` is false.
    """
    return await rerank_documents(body, call, write=get_object_writer(body, default=True))


async def rerank_documents(body: RerankRequest, call: Call, *, write: WriteDocument) -> Response:
    """Rank documents and write each with `write`; None leaves them out."""
    ranking = await rank(body, call, top_n=body.top_n, truncate=body.truncate)
    results = describe_ranking(ranking, write)
    return task_response("rerank", {"results": results}, model=ranking.model, num_tokens=ranking.num_tokens)


def get_object_writer(body: RerankRequest, *, default: bool) -> WriteDocument:
    """Return a function that makes an object of a document, or None if the request wants no documents.

    default: whether documents are returned if the request does not say.
    """
    wants_documents = default if body.return_documents is None else body.return_documents
    return (lambda ranked: body.get_document(ranked.index)) if wants_documents else None


def get_text_writer(body: RerankRequest) -> WriteDocument:
    """Return a function that returns the text of a document, or None unless the request wants documents."""
    return attrgetter("document") if body.return_documents else None


async def rank(body: RerankRequest, call: Call, *, top_n: int | None, truncate: Truncation | None) -> Ranking:
    """Rank the documents of a request; `top_n` and `truncate` replace the fields of the same names."""
    engine, _ = call.resolve(body, "rerank", body.documents)
    is_raw = None if body.use_activation is None else not body.use_activation
    options = RerankOptions(
        raw_scores=bool(merge_aliases(raw_scores=body.raw_scores, use_activation=is_raw)),
        top_n=top_n,
        prompt=merge_aliases(instruction=body.instruction, prompt=body.prompt),
        prompt_name=body.prompt_name,
        truncation=choose_truncation(truncate, truncation_side=body.truncation_side),
        max_tokens=body.truncate_prompt_tokens,
        max_query_tokens=body.max_tokens_per_query,
        max_document_tokens=body.max_tokens_per_doc,
    )
    documents, num_tokens = await engine.scorer.rerank(body.query, body.documents, options)
    return Ranking(documents, num_tokens, engine.engine_args.served_model_name)


def describe_ranking(ranking: Ranking, write: WriteDocument) -> JsonList:
    """Return the entries of a response; without `write` they have no field `document`."""

    def describe(place: int) -> object:
        ranked = ranking.documents[place]
        # It is left out rather than null: some clients reject null.
        document = {"document": mark_long_texts(write(ranked))} if write else {}
        return {"relevance_score": ranked.relevance_score, "index": ranked.index, **document}

    num_documents = len(ranking.documents)
    return JsonList(describe, num_documents, count_values(num_documents, has_texts=write is not None))


def count_values(num_documents: int, *, has_texts: bool) -> int:
    """Return how many numbers take as long to encode as the scores and texts that a request asks for."""
    return num_documents + (current_memory().num_bytes // CHARS_PER_VALUE if has_texts else 0)


def split_pairs(inputs: Sequence[object], *, name: str) -> tuple[list[str], list[str]]:
    """Return the queries and the documents of pairs. Raises a 422 for inputs that are not pairs.

    name: the field with the inputs.
    """
    pairs = [value for value in inputs if isinstance(value, tuple) and len(value) == 2]
    if len(pairs) < len(inputs):
        message = "must be pairs of texts, a query and a document, for a reranker"
        raise body_error("not_for_rerankers", message, loc=[name])
    queries, documents = zip(*pairs, strict=True)
    return list(queries), list(documents)


async def score_pairs(
    engine: AsyncEmbeddingEngine, queries: Sequence[str], documents: Sequence[str], options: RerankOptions
) -> tuple[list[float], int]:
    """Score each document for its query, and return the number of tokens too.

    The documents of each distinct query are ranked together; errors carry the index of a document.
    """
    indices_by_query: dict[str, list[int]] = {}
    for index, query in enumerate(queries):
        indices_by_query.setdefault(query, []).append(index)
    turns = asyncio.Semaphore(MAX_QUERIES_AT_ONCE)

    async def rank_some(query: str, indices: list[int]) -> tuple[list[RerankReturnType], int]:
        async with turns:
            some = [documents[index] for index in indices]
            return await engine.scorer.rerank(query, some, replace(options, positions=indices))

    rankings = await gather_or_cancel(
        rank_some(query, indices) for query, indices in indices_by_query.items()
    )
    scores = [0.0] * len(queries)
    for indices, (ranked, _) in zip(indices_by_query.values(), rankings, strict=True):
        for document in ranked:
            scores[indices[document.index]] = document.relevance_score
    return scores, sum(num_tokens for _, num_tokens in rankings)


ENDPOINTS = [
    Endpoint("/rerank", [Form(rerank, RerankRequest, RerankResponse, RERANK_EXAMPLES)], is_at_v1=False),
    Endpoint(
        "/v1/rerank", [Form(rerank_v1, RerankRequest, RerankObjectsResponse, RERANK_EXAMPLES)], is_at_v1=False
    ),
]
