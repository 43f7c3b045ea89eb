"""vLLM's routes `/score` and `/pooling`; its `/embeddings` and `/rerank` are ours as well.

Its `/classify` shares a path with infinity's, so that `classify_route.py` calls `vllm_classify`. Knows
nothing of how an engine computes or how bytes are made.
Source: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from fastapi import Body
from starlette.requests import Request
from starlette.responses import Response

from infinity_emb.completion import gather_or_cancel
from infinity_emb.embedding import EmbedOptions
from infinity_emb.engine import AsyncEmbeddingEngine
from infinity_emb.errors import ServingError
from infinity_emb.postprocess import unit_rows
from infinity_emb.primitives import (
    Capability,
    ClassifyReturnType,
    EmbeddingDtype,
    ModelKind,
    OutputName,
    RerankReturnType,
    Truncation,
)
from infinity_emb.server.api_route import ApiRoute, Task
from infinity_emb.server.disconnect import cancel_on_disconnect
from infinity_emb.server.encode import encode_list, task_response, to_base64
from infinity_emb.server.members import choose_truncation
from infinity_emb.server.schemas.vllm import (
    VLLM_POOLING_EXAMPLES,
    VLLM_SCORE_EXAMPLES,
    PoolingTask,
    VllmClassifyRequest,
    VllmPoolingRequest,
    VllmPoolingResponse,
    VllmRequest,
    VllmScoreRequest,
    VllmScoreResponse,
)
from infinity_emb.server.validation import body_error

# (D,) of a text, or (n, D) of its tokens.
Pooled = Sequence[npt.NDArray[Any]]


class VllmRoutes(Task):
    """The handlers, over one app's engines."""

    def routes(self) -> list[ApiRoute]:
        """Where the handlers are reached."""
        return [
            ApiRoute.of_task("/score", self.vllm_score, VllmScoreResponse),
            ApiRoute.of_task("/pooling", self.vllm_pooling, VllmPoolingResponse),
        ]

    async def vllm_score(
        self,
        body: Annotated[VllmScoreRequest, Body(openapi_examples=VLLM_SCORE_EXAMPLES)],
        request: Request,
    ) -> Response:
        """How well each document answers its query, in the order of the documents, as `/rerank` scores."""
        self.check_num_inputs(body.documents, "documents")
        queries = _one_for_each(body.queries, body.documents)
        engine, _ = self.served.choose(body.model_name, "rerank")
        scores, num_tokens = await cancel_on_disconnect(request, _score(engine, queries, body))
        data = [{"index": at, "object": "score", "score": score} for at, score in enumerate(scores)]
        return _respond(engine, data, num_tokens)

    async def vllm_pooling(
        self,
        body: Annotated[VllmPoolingRequest, Body(openapi_examples=VLLM_POOLING_EXAMPLES)],
        request: Request,
    ) -> Response:
        """A vector for each text, or for each of its tokens, or the probabilities of the labels."""
        self.check_num_inputs(body.input, "input")
        if body.task == "token_classify":
            message = "no model labels tokens here; ask for 'embed', 'token_embed' or 'classify'"
            raise body_error("not_able", message, loc=["task"], given=body.task)
        capability: Capability = "classify" if body.task == "classify" else "embed"
        engine, input_type = self.served.choose(body.model_name, capability)
        is_labelled = body.task == "classify" or (
            body.task is None and engine.info.kind is ModelKind.classifier
        )
        pooling = _classify(engine, body) if is_labelled else _embed(engine, body, input_type)
        rows, num_tokens = await cancel_on_disconnect(request, pooling)
        write = to_base64 if body.encoding_format == "base64" else np.ascontiguousarray
        data = await encode_list(
            lambda at: {"index": at, "object": "pooling", "data": write(rows[at])},
            len(rows),
            sum(row.size for row in rows),
        )
        return _respond(engine, data, num_tokens)

    async def vllm_classify(self, body: VllmClassifyRequest, request: Request) -> Response:
        """The most likely label of each text, and the probabilities of all in the order of the labels."""
        self.check_num_inputs(body.input, "input")
        engine, _ = self.served.choose(body.model_name, "classify")
        rows, num_tokens = await cancel_on_disconnect(request, _classify(engine, body))
        labels = engine.info.labels
        data = [
            {"index": at, "label": labels[row.argmax()], "probs": row, "num_classes": len(labels)}
            for at, row in enumerate(rows)
        ]
        return _respond(engine, data, num_tokens)


def _respond(engine: AsyncEmbeddingEngine, data: object, num_tokens: int) -> Response:
    name = engine.engine_args.served_model_name
    return task_response("list", {"data": data}, model=name, num_tokens=num_tokens)


def _truncation_of(body: VllmRequest) -> Truncation:
    return choose_truncation(body.truncate, truncation_side=body.truncation_side)


def _one_for_each(queries: list[str], documents: list[str]) -> list[str]:
    """As many queries as documents. Raises a 422 unless there is one, or one for each."""
    if len(queries) not in (1, len(documents)):
        message = f"has {len(queries)} texts for {len(documents)} documents; send one, or one for each"
        raise body_error("wrong_number", message, loc=["queries"], given=queries)
    return queries if len(queries) == len(documents) else queries * len(documents)


async def _score(
    engine: AsyncEmbeddingEngine, queries: list[str], body: VllmScoreRequest
) -> tuple[list[float], int]:
    """A score for each pair in order, and tokens; a ranking for each distinct query makes them."""
    places: dict[str, list[int]] = {}
    for place, query in enumerate(queries):
        places.setdefault(query, []).append(place)
    rankings = await gather_or_cancel(_rank(engine, query, at, body) for query, at in places.items())
    scores = [0.0] * len(queries)
    for at, (ranked, _) in zip(places.values(), rankings, strict=True):
        for each in ranked:
            scores[at[each.index]] = each.relevance_score
    return scores, sum(num_tokens for _, num_tokens in rankings)


async def _rank(
    engine: AsyncEmbeddingEngine, query: str, places: list[int], body: VllmScoreRequest
) -> tuple[list[RerankReturnType], int]:
    """The documents at these places; an error names one by its place in the request."""
    try:
        return await engine.rerank(
            query=query,
            docs=[body.documents[place] for place in places],
            raw_scores=body.use_activation is False,
            prompt=body.instruction,
            truncation=_truncation_of(body),
            max_tokens=body.truncate_prompt_tokens,
        )
    except ServingError as exc:
        if exc.position is None:
            raise
        raise exc.moved_to(places[exc.position]) from exc


async def _classify(
    engine: AsyncEmbeddingEngine, body: VllmClassifyRequest | VllmPoolingRequest
) -> tuple[Pooled, int]:
    """(L,) for each input, in the order of the model's labels; and tokens."""
    labelled, num_tokens = await engine.classify(
        sentences=body.input,
        raw_scores=body.use_activation is False,
        truncation=_truncation_of(body),
        max_tokens=body.truncate_prompt_tokens,
    )
    return [_in_order(engine.info.labels, row) for row in labelled], num_tokens


def _in_order(labels: Sequence[str], row: Sequence[ClassifyReturnType]) -> npt.NDArray[np.float32]:
    scores = {each["label"]: each["score"] for each in row}
    return np.array([scores[label] for label in labels], dtype=np.float32)


async def _embed(
    engine: AsyncEmbeddingEngine, body: VllmPoolingRequest, input_type: str | None
) -> tuple[Pooled, int]:
    output = _output_for(body.task, engine.info.outputs)
    if output == "tokens" and body.dimensions:
        message = "cannot be given where tokens are asked for; leave it out"
        raise body_error("not_for_tokens", message, loc=["dimensions"], given=body.dimensions)
    options = EmbedOptions(
        input_type=input_type,
        dimensions=body.dimensions or None,
        embedding_dtype=EmbeddingDtype.float32,
        outputs=(output,),
        truncation=_truncation_of(body),
        max_tokens=body.truncate_prompt_tokens,
    )
    answer = await engine.encode(body.input, options)
    if answer.tokens is not None:
        is_scaled = body.use_activation is not False
        return [unit_rows(rows) if is_scaled else rows for rows in answer.tokens], answer.num_tokens
    vectors = answer.dense if output == "dense" else answer.multivector
    assert vectors is not None, "an engine answers what it was asked for"
    return vectors, answer.num_tokens


def _output_for(task: PoolingTask | None, outputs: Sequence[OutputName]) -> OutputName:
    """The model's own token vectors where it is made to have some, else what it says of each token."""
    if task == "embed" or (task is None and outputs[:1] != ("multivector",)):
        return "dense"
    return "multivector" if "multivector" in outputs else "tokens"
