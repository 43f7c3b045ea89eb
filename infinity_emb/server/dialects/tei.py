"""The routes of Text Embeddings Inference that infinity has no route of its own for.

Its `/rerank` shares a path with infinity's, so that `rerank_route.py` calls `tei_rerank`; `/embed_sparse`
stands in `sparse_route.py`. Knows nothing of how an engine computes or how bytes are made.
Source: https://huggingface.github.io/text-embeddings-inference/
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from fastapi import Body
from starlette.requests import Request
from starlette.responses import Response

from infinity_emb import __version__
from infinity_emb.backends.base import Rows
from infinity_emb.embedding import Embeddings, EmbedOptions
from infinity_emb.engine import AsyncEmbeddingEngine
from infinity_emb.errors import UnknownModel
from infinity_emb.postprocess import check_dimensions, unit_rows
from infinity_emb.primitives import EmbeddingDtype, ModelInfo, ModelKind, Truncation
from infinity_emb.scoring import cosine_scores
from infinity_emb.server.api_route import ApiRoute, Handler, Task
from infinity_emb.server.dialects.tei_timing import Stopwatch
from infinity_emb.server.disconnect import cancel_on_disconnect
from infinity_emb.server.encode import encode_list, json_response
from infinity_emb.server.error_docs import TEI_ERRORS
from infinity_emb.server.error_shape import note_shape
from infinity_emb.server.inputs import check_ids_allowed
from infinity_emb.server.json_route import fit_schema
from infinity_emb.server.members import choose_truncation
from infinity_emb.server.schemas.sparse import SparseRequest, SparseResponse
from infinity_emb.server.schemas.task import TaskRequest
from infinity_emb.server.schemas.tei import (
    TEI_ANY_EXAMPLES,
    TEI_EMBED_EXAMPLES,
    TEI_PREDICT_EXAMPLES,
    TEI_SIMILARITY_EXAMPLES,
    SimilarityParameters,
    TeiAnyRequest,
    TeiEmbedRequest,
    TeiInfo,
    TeiPredictions,
    TeiPredictRequest,
    TeiRanked,
    TeiRequest,
    TeiRerankRequest,
    TeiSimilarityRequest,
    TeiVectors,
    shape_error,
)
from infinity_emb.server.sparse_route import SparseRoute

_ANY_ANSWER = TeiVectors | TeiPredictions | SparseResponse | list[float] | list[TeiRanked]


class _Form(NamedTuple):
    """A handler, and the schema of its body."""

    answer: Callable[[Any, Request], Coroutine[Any, Any, Response]]
    schema: type[TaskRequest]


class TeiRoutes(Task):
    """The handlers, over one app's engines."""

    def routes(self) -> list[ApiRoute]:
        """Where the handlers are reached."""
        return [
            tei_route("/embed", self.tei_embed, TeiVectors),
            tei_route("/predict", self.tei_predict, TeiPredictions),
            tei_route("/similarity", self.tei_similarity, list[float]),
            tei_route("/", self.tei_any, _ANY_ANSWER),
            ApiRoute(
                path="/info",
                method="GET",
                answer=self.tei_info,
                response_model=TeiInfo,
                errors={status: TEI_ERRORS[status] for status in (422, 503)},
                is_at_v1=False,
                error_shape=shape_error,
            ),
        ]

    async def tei_embed(
        self, body: Annotated[TeiEmbedRequest, Body(openapi_examples=TEI_EMBED_EXAMPLES)], request: Request
    ) -> Response:
        """One vector per text, a list of lists, as clients of Text Embeddings Inference read them."""
        watch = Stopwatch()
        self.check_num_inputs(body.inputs, "inputs")
        engine, input_type = self.served.choose(body.model_name, "embed")
        check_ids_allowed(body.inputs, engine.engine_args.token_ids, name="inputs")
        if "dense" in engine.info.outputs:
            check_dimensions(body.dimensions, engine.info.embedding_dimension)
        options = _dense_options(body.prompt_name, input_type, truncation_of(body))
        answer = await watch.time(cancel_on_disconnect(request, engine.encode(body.inputs, options)))
        # Cut here: the engine scales what it cuts to length 1, which `normalize` may forbid.
        cut = np.ascontiguousarray(_rows_of(answer)[:, : body.dimensions])  # (N, dimensions)
        scaled = cut if body.normalize is False else unit_rows(cut)
        response = json_response(await encode_list(lambda index: scaled[index], len(scaled), scaled.size))
        return watch.stamp(response, engine, body.inputs, num_tokens=answer.num_tokens)

    async def tei_predict(
        self,
        body: Annotated[TeiPredictRequest, Body(openapi_examples=TEI_PREDICT_EXAMPLES)],
        request: Request,
    ) -> Response:
        """All labels, the most likely first; of a batch a list for each input."""
        watch = Stopwatch()
        self.check_num_inputs(body.inputs.texts_or_pairs, "inputs")
        engine, _ = self.served.choose(body.model_name, "classify")
        classifying = engine.classify(
            sentences=body.inputs.texts_or_pairs,
            raw_scores=bool(body.raw_scores),
            truncation=truncation_of(body),
        )
        labelled, num_tokens = await watch.time(cancel_on_disconnect(request, classifying))
        answers = [[{"score": each["score"], "label": each["label"]} for each in row] for row in labelled]
        response = json_response(answers if body.inputs.is_batch else answers[0])
        return watch.stamp(response, engine, body.inputs.texts_or_pairs, num_tokens=num_tokens)

    async def tei_similarity(
        self,
        body: Annotated[TeiSimilarityRequest, Body(openapi_examples=TEI_SIMILARITY_EXAMPLES)],
        request: Request,
    ) -> Response:
        """The cosine of each sentence with the source sentence, in the order of the sentences."""
        watch = Stopwatch()
        # The source stands last, so that an error names a sentence by its own place.
        texts = [*body.inputs.sentences, body.inputs.source_sentence]
        self.check_num_inputs(texts, "inputs")
        engine, input_type = self.served.choose(body.model_name, "embed")
        how = body.parameters or SimilarityParameters()
        options = _dense_options(how.prompt_name, input_type, truncation_of(how))
        answer = await watch.time(cancel_on_disconnect(request, engine.encode(texts, options)))
        rows = _rows_of(answer)  # (N + 1, D)
        response = json_response(cosine_scores(rows[-1], rows[:-1]))
        return watch.stamp(response, engine, texts, num_tokens=answer.num_tokens)

    async def tei_rerank(self, body: TeiRerankRequest, request: Request) -> Response:
        """Texts by how well they answer a query, best first; a list without anything around it."""
        watch = Stopwatch()
        self.check_num_inputs(body.texts, "texts")
        engine, _ = self.served.choose(body.model_name, "rerank")
        ranking = engine.rerank(
            query=body.query,
            docs=body.texts,
            raw_scores=bool(body.raw_scores),
            top_n=body.top_n,
            truncation=truncation_of(body),
        )
        ranked, num_tokens = await watch.time(cancel_on_disconnect(request, ranking))
        response = json_response(
            [
                {
                    "index": each.index,
                    **({"text": each.document} if body.return_text else {}),
                    "score": each.relevance_score,
                }
                for each in ranked
            ]
        )
        return watch.stamp(
            response, engine, ((body.query, text) for text in body.texts), num_tokens=num_tokens
        )

    async def tei_any(
        self, body: Annotated[TeiAnyRequest, Body(openapi_examples=TEI_ANY_EXAMPLES)], request: Request
    ) -> Response:
        """What the model is made for, as clients that know nothing but the server's address ask for it."""
        members = {name: getattr(body, name) for name in body.model_fields_set}
        form = self._form_of(body)
        return await form.answer(fit_schema(form.schema, members), request)

    async def tei_info(self, request: Request, model: str | None = None) -> Response:
        """The served model; of several the one that `?model=` names."""
        note_shape(request, shape_error)
        engine = self._named_or_only(model, list(self.served.array))
        return json_response(_describe(engine, max_client_batch_size=self.max_client_batch_size))

    def _form_of(self, body: TeiAnyRequest) -> _Form:
        """By the members where they tell, else by the model."""
        if body.texts is not None:
            return _Form(self.tei_rerank, TeiRerankRequest)
        if isinstance(body.inputs, dict):
            return _Form(self.tei_similarity, TeiSimilarityRequest)
        engines = list(self.served.array)
        takers = [engine for engine in engines if engine.info.kind is not ModelKind.reranker]
        kind = self._named_or_only(body.model_name, takers or engines).info.kind
        sparse = SparseRoute(served=self.served, max_client_batch_size=self.max_client_batch_size)
        forms = {
            ModelKind.reranker: _Form(self.tei_rerank, TeiRerankRequest),
            ModelKind.classifier: _Form(self.tei_predict, TeiPredictRequest),
            ModelKind.sparse: _Form(sparse.embed_sparse, SparseRequest),
        }
        return forms.get(kind, _Form(self.tei_embed, TeiEmbedRequest))

    def _named_or_only(
        self, name: str | None, engines: Sequence[AsyncEmbeddingEngine]
    ) -> AsyncEmbeddingEngine:
        """Raises UnknownModel where there are several and none is named."""
        if name is not None:
            return self.served.choose(name, "embed").engine
        if len(engines) > 1:
            names = [engine.engine_args.served_model_name for engine in engines]
            raise UnknownModel(f"the request names no model; give `model` as one of {names}")
        return engines[0]


def tei_route(path: str, answer: Handler, response_model: object) -> ApiRoute:
    """A route that takes JSON to a model, with the errors of the dialect."""
    return ApiRoute(
        path=path,
        method="POST",
        answer=answer,
        response_model=response_model,
        errors=TEI_ERRORS,
        is_at_v1=False,
    )


def truncation_of(how: TeiRequest | SimilarityParameters) -> Truncation:
    """Where a text that is too long is cut."""
    return choose_truncation(how.truncate, truncation_direction=how.truncation_direction)


def _dense_options(prompt_name: str | None, input_type: str | None, truncation: Truncation) -> EmbedOptions:
    """Floats, whatever number format the model is served with: its clients know no other."""
    return EmbedOptions(
        prompt_name=prompt_name,
        input_type=input_type,
        truncation=truncation,
        embedding_dtype=EmbeddingDtype.float32,
        outputs=("dense",),
    )


def _rows_of(answer: Embeddings) -> Rows:
    """(N, D)"""
    assert answer.dense is not None, "an engine answers what it was asked for"
    return np.stack(answer.dense)


def _describe(engine: AsyncEmbeddingEngine, *, max_client_batch_size: int) -> dict[str, object]:
    """In the order of Text Embeddings Inference."""
    args, info = engine.engine_args, engine.info
    return {
        "model_id": args.model_name_or_path,
        "model_sha": info.revision,
        "model_dtype": info.dtype,
        "served_model_name": args.served_model_name,
        "model_type": _describe_type(info),
        "max_concurrent_requests": args.max_queue_items,
        "max_input_length": info.max_tokens,
        "max_batch_tokens": engine.max_batch_tokens,
        "max_batch_requests": args.batch_size,
        "max_client_batch_size": max_client_batch_size,
        "auto_truncate": True,
        "version": __version__,
        "sha": None,
        "docker_label": None,
    }


def _describe_type(info: ModelInfo) -> Mapping[str, object]:
    if info.kind not in (ModelKind.reranker, ModelKind.classifier):
        return {"embedding": {"pooling": "splade" if info.kind is ModelKind.sparse else info.pooling}}
    labels = info.labels or ("LABEL_0",)
    names = {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    return {str(info.kind): names}
