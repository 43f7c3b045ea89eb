"""The routes of Text Embeddings Inference about texts, and its form of `/rerank`.

Source: https://huggingface.github.io/text-embeddings-inference/
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

import numpy as np
from starlette.responses import Response

from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.results import ClassifyOptions, EmbedOptions, RerankOptions
from infinity_emb.errors import ModelNotNamed, quote_all
from infinity_emb.postprocessing import check_dimensions, cosine_scores, normalize
from infinity_emb.server.dialects.tei.errors import ERRORS
from infinity_emb.server.dialects.tei.schemas import (
    TEI_ANY_EXAMPLES,
    TEI_EMBED_EXAMPLES,
    TEI_PREDICT_EXAMPLES,
    TEI_RERANK_EXAMPLES,
    TEI_SIMILARITY_EXAMPLES,
    SimilarityParameters,
    TeiAnyRequest,
    TeiEmbedRequest,
    TeiPredictions,
    TeiPredictRequest,
    TeiRanked,
    TeiRerankRequest,
    TeiSimilarityRequest,
    TeiVectors,
    read_truncation,
)
from infinity_emb.server.dialects.tei.sparse import SparseRequest, SparseResponse, embed_sparse
from infinity_emb.server.dialects.tei.timing_headers import Stopwatch
from infinity_emb.server.requests.call import Call
from infinity_emb.server.requests.embedding_options import normalizes_for_dialect
from infinity_emb.server.responses.json_vectors import json_response
from infinity_emb.server.responses.sliced import JsonList, mark_long_texts
from infinity_emb.server.routes.rerank import count_values, score_pairs, split_pairs
from infinity_emb.server.routing import Endpoint, Form
from infinity_emb.server.schemas.common import TaskRequest
from infinity_emb.server.served_models import ServedModels
from infinity_emb.types import ClassifyReturnType, EmbeddingDtype, ModelKind, TokenIdPolicy, Truncation


async def tei_embed(body: TeiEmbedRequest, call: Call) -> Response:
    """Embed texts.

    Returns one vector per text, as a list of lists.
    """
    watch = Stopwatch()
    engine, input_type = call.resolve(body, "embed", body.inputs)
    if "dense" in engine.info.outputs:
        check_dimensions(body.dimensions, engine.info.embedding_dimension)
    options = _dense_options(body.prompt_name, input_type, read_truncation(body))
    result = await watch.time(engine.embedder.encode(body.inputs, options))
    # Truncated here: the engine scales what it truncates to length 1, which `normalize` may forbid.
    truncated = np.ascontiguousarray(np.stack(result.get("dense"))[:, : body.dimensions])  # (N, dimensions)
    wants_unit = normalizes_for_dialect(engine) if body.normalize is None else body.normalize
    vectors = normalize(truncated) if wants_unit else truncated
    response = json_response(JsonList(lambda index: vectors[index], len(vectors), vectors.size))
    return watch.stamp(response, engine, body.inputs, num_tokens=result.num_tokens)


async def tei_predict(body: TeiPredictRequest, call: Call) -> Response:
    """Classify texts or pairs of texts.

    Returns all labels, the most likely first; for a batch one list per input.
    """
    watch = Stopwatch()
    inputs, is_batch = body.inputs
    engine, _ = call.resolve(body, "classify", inputs)
    label = _score_label if engine.info.kind is ModelKind.reranker else _classify
    labelled, num_tokens = await watch.time(label(engine, inputs, body))
    content = JsonList(labelled.__getitem__, len(labelled), sum(map(len, labelled)))
    response = json_response(content if is_batch else labelled[0])
    return watch.stamp(response, engine, inputs, num_tokens=num_tokens)


async def _classify(
    engine: AsyncEmbeddingEngine, inputs: Sequence[str | tuple[str, str]], body: TeiPredictRequest
) -> tuple[list[list[ClassifyReturnType]], int]:
    options = ClassifyOptions(raw_scores=bool(body.raw_scores), truncation=read_truncation(body))
    return await engine.scorer.classify(inputs, options)


async def _score_label(
    engine: AsyncEmbeddingEngine, inputs: Sequence[str | tuple[str, str]], body: TeiPredictRequest
) -> tuple[list[list[ClassifyReturnType]], int]:
    """Return the score of each pair as that of the only label of a reranker."""
    queries, documents = split_pairs(inputs, name="inputs")
    options = RerankOptions(raw_scores=bool(body.raw_scores), truncation=read_truncation(body))
    scores, num_tokens = await score_pairs(engine, queries, documents, options)
    label = (engine.info.labels or ("LABEL_0",))[0]
    return [[{"score": score, "label": label}] for score in scores], num_tokens


async def tei_similarity(body: TeiSimilarityRequest, call: Call) -> Response:
    """Compare a sentence with others.

    Returns the cosine similarity of each sentence to the source sentence, in order.
    """
    watch = Stopwatch()
    # The source comes last, so that errors report the index of a sentence.
    texts = [*body.inputs.sentences, body.inputs.source_sentence]
    engine, input_type = call.resolve(body, "embed", texts)
    parameters = body.parameters or SimilarityParameters()
    options = _dense_options(parameters.prompt_name, input_type, read_truncation(parameters))
    result = await watch.time(engine.embedder.encode(texts, options))
    vectors = np.stack(result.get("dense"))  # (N + 1, D)
    response = json_response(cosine_scores(vectors[-1], vectors[:-1]))
    return watch.stamp(response, engine, texts, num_tokens=result.num_tokens)


async def tei_rerank(body: TeiRerankRequest, call: Call) -> Response:
    """Rank texts by relevance to a query.

    Returns a plain list, best first.
    """
    watch = Stopwatch()
    engine, _ = call.resolve(body, "rerank", body.texts)
    options = RerankOptions(
        raw_scores=bool(body.raw_scores), top_n=body.top_n, truncation=read_truncation(body)
    )
    ranked, num_tokens = await watch.time(engine.scorer.rerank(body.query, body.texts, options))

    def describe(place: int) -> object:
        text = ranked[place]
        document = {"text": mark_long_texts(text.document)} if body.return_text else {}
        return {"index": text.index, **document, "score": text.relevance_score}

    num_values = count_values(len(ranked), has_texts=bool(body.return_text))
    response = json_response(JsonList(describe, len(ranked), num_values))
    pairs = ((body.query, text) for text in body.texts)
    return watch.stamp(response, engine, pairs, num_tokens=num_tokens)


async def tei_any(body: TeiAnyRequest, call: Call) -> Response:
    """Run the main task of the model.

    For clients that only know the address of the server. The fields of the request or else the kind of the
    model select the task.
    """
    fields = {name: getattr(body, name) for name in body.model_fields_set}
    task = _choose_task(body, call.models)
    return await task.handler(await call.validate(task.schema, fields), call)


class _Task(NamedTuple):
    """A handler and the schema of its body."""

    handler: Callable[[Any, Call], Coroutine[Any, Any, Response]]
    schema: type[TaskRequest]


_TASKS = {
    ModelKind.reranker: _Task(tei_rerank, TeiRerankRequest),
    ModelKind.classifier: _Task(tei_predict, TeiPredictRequest),
    ModelKind.sparse: _Task(embed_sparse, SparseRequest),
}


def _choose_task(body: TeiAnyRequest, models: ServedModels) -> _Task:
    """Choose by the body's fields, or else by the kind of the model."""
    if body.texts is not None:
        return _Task(tei_rerank, TeiRerankRequest)
    if isinstance(body.inputs, dict):
        return _Task(tei_similarity, TeiSimilarityRequest)
    engines = list(models.array)
    candidates = [engine for engine in engines if engine.info.kind is not ModelKind.reranker]
    engine = find_named_or_only(models, body.model_name, candidates or engines)
    return _TASKS.get(engine.info.kind, _Task(tei_embed, TeiEmbedRequest))


def find_named_or_only(
    models: ServedModels, name: str | None, engines: Sequence[AsyncEmbeddingEngine]
) -> AsyncEmbeddingEngine:
    """Return the named engine, or the only one. Raises ModelNotNamed if there are several."""
    if name is not None:
        return models.resolve(name, "embed").engine
    if len(engines) > 1:
        names = [engine.engine_args.served_model_name for engine in engines]
        raise ModelNotNamed(f"the request names no model; set `model` to one of {quote_all(names)}")
    return engines[0]


def _dense_options(prompt_name: str | None, input_type: str | None, truncation: Truncation) -> EmbedOptions:
    """Ask for float32 whatever dtype the model is served with: TEI's clients know no other."""
    return EmbedOptions(
        prompt_name=prompt_name,
        input_type=input_type,
        truncation=truncation,
        embedding_dtype=EmbeddingDtype.float32,
        normalize=False,
        token_ids=TokenIdPolicy.model,
        outputs=("dense",),
    )


ANY_RESPONSE = TeiVectors | TeiPredictions | SparseResponse | list[float] | list[TeiRanked]

ENDPOINTS = [
    Endpoint(path, [Form(handler, schema, response, examples, errors=ERRORS)], is_at_v1=False)
    for path, handler, schema, response, examples in (
        ("/embed", tei_embed, TeiEmbedRequest, TeiVectors, TEI_EMBED_EXAMPLES),
        ("/predict", tei_predict, TeiPredictRequest, TeiPredictions, TEI_PREDICT_EXAMPLES),
        ("/similarity", tei_similarity, TeiSimilarityRequest, list[float], TEI_SIMILARITY_EXAMPLES),
        ("/", tei_any, TeiAnyRequest, ANY_RESPONSE, TEI_ANY_EXAMPLES),
    )
]

_RERANK = Form(
    tei_rerank,
    TeiRerankRequest,
    list[TeiRanked],
    TEI_RERANK_EXAMPLES,
    errors=ERRORS,
    discriminators=frozenset({"texts"}),
)
# Path of an endpoint → more forms of it.
FORMS = {"/rerank": [_RERANK], "/v1/rerank": [_RERANK]}
