"""Cohere's routes: `/v1/embed`, `/v2/embed` and `/v2/rerank`; its `/v1/rerank` is ours as well.

Knows nothing of how an engine computes or how bytes are made.
Source: https://docs.cohere.com/reference/embed and https://docs.cohere.com/reference/rerank
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from fastapi import Body
from starlette.requests import Request
from starlette.responses import Response

from infinity_emb.backends.base import Rows
from infinity_emb.embedding import Embeddings, EmbedOptions
from infinity_emb.engine import AsyncEmbeddingEngine
from infinity_emb.primitives import EmbeddingDtype, Modality
from infinity_emb.server.api_route import ApiRoute, Task
from infinity_emb.server.disconnect import cancel_on_disconnect
from infinity_emb.server.embeddings_route import MAX_MEDIA
from infinity_emb.server.encode import encode_list, json_response, to_base64
from infinity_emb.server.members import check_num_members
from infinity_emb.server.schemas.cohere import (
    COHERE_EMBED_EXAMPLES,
    COHERE_RERANK_EXAMPLES,
    CohereEmbedRequest,
    CohereEmbedResponse,
    CohereError,
    CohereFloatsResponse,
    CohereRerankRequest,
    CohereRerankResponse,
    EmbeddingType,
)
from infinity_emb.server.validation import body_error

Version = Literal["1", "2"]

EmbedBody = Annotated[CohereEmbedRequest, Body(openapi_examples=COHERE_EMBED_EXAMPLES)]
RerankBody = Annotated[CohereRerankRequest, Body(openapi_examples=COHERE_RERANK_EXAMPLES)]

_FLOATS = ("float", "base64")
_NEED_RANGES = ("int8", "uint8")
_DEFAULT_TYPES: tuple[EmbeddingType, ...] = ("float",)


class CohereRoutes(Task):
    """The handlers, over one app's engines."""

    def routes(self) -> list[ApiRoute]:
        """Where the handlers are reached."""
        either = CohereFloatsResponse | CohereEmbedResponse
        return [
            ApiRoute.of_dialect("/v1/embed", self.cohere_embed_v1, either, CohereError),
            ApiRoute.of_dialect("/v2/embed", self.cohere_embed, CohereEmbedResponse, CohereError),
            ApiRoute.of_dialect("/v2/rerank", self.cohere_rerank, CohereRerankResponse, CohereError),
        ]

    async def cohere_embed_v1(self, body: EmbedBody, request: Request) -> Response:
        """`Client(base_url="http://localhost:7997").embed`: a list of vectors, or one for each type."""
        return await self._embed(body, request, version="1")

    async def cohere_embed(self, body: EmbedBody, request: Request) -> Response:
        """`ClientV2(base_url="http://localhost:7997").embed`: a list of vectors for each type."""
        return await self._embed(body, request, version="2")

    async def cohere_rerank(self, body: RerankBody, request: Request) -> Response:
        """Documents by how well they answer a query, best first, as `ClientV2.rerank` reads them."""
        self.check_num_inputs(body.documents, "documents")
        engine, _ = self.served.choose(body.model_name, "rerank")
        ranking = engine.rerank(query=body.query, docs=body.documents, top_n=body.top_n)
        ranked, num_tokens = await cancel_on_disconnect(request, ranking)
        results = [{"index": each.index, "relevance_score": each.relevance_score} for each in ranked]
        meta = {"billed_units": {"search_units": 1}, "tokens": {"input_tokens": num_tokens}}
        return _respond({"results": results}, meta, version="2")

    async def _embed(self, body: CohereEmbedRequest, request: Request, *, version: Version) -> Response:
        self._check_inputs(body)
        engine, input_type = self.served.choose(body.model_name, "embed" if body.texts else "image_embed")
        answer = await cancel_on_disconnect(request, _encode(engine, body, input_type))
        assert answer.dense is not None, "an engine answers what it was asked for"
        rows = np.stack(answer.dense)  # (N, D) float32, of which every type is made
        types = dict.fromkeys(body.embedding_types or _DEFAULT_TYPES)
        by_type = {each: await _write(engine, rows, each) for each in types}
        is_list = version == "1" and not body.embedding_types
        results = {
            "response_type": "embeddings_floats" if is_list else "embeddings_by_type",
            "embeddings": by_type["float"] if is_list else by_type,
            **({"texts": body.texts} if body.texts else {}),
        }
        return _respond(results, {"billed_units": {"input_tokens": answer.num_tokens}}, version=version)

    def _check_inputs(self, body: CohereEmbedRequest) -> None:
        if (body.texts is None) == (body.images is None):
            raise body_error("missing", "give 'texts', or 'images' instead", loc=["texts"])
        self.check_num_inputs(body.texts or [], "texts")
        check_num_members(body.images or [], limit=MAX_MEDIA, name="images")
        for kind in _NEED_RANGES if body.images else ():
            if kind in (body.embedding_types or ()):
                message = f"images are not answered as {kind!r}, whose ranges come from texts; ask for others"
                raise body_error("not_for_images", message, loc=["embedding_types"], given=kind)


def is_coheres_client(request: Request) -> bool:
    """Whether one of Cohere's own libraries asks, which all say so.

    Of `/v1/rerank` they read `document.text`, where infinity's clients and LiteLLM must find a text; what
    they send has no member that tells them apart.
    """
    return request.headers.get("x-fern-sdk-name", "").startswith("cohere")


def document_object(text: str) -> dict[str, str]:
    """A document, as Cohere's own libraries read it."""
    return {"text": text}


async def _encode(
    engine: AsyncEmbeddingEngine, body: CohereEmbedRequest, input_type: str | None
) -> Embeddings:
    options = EmbedOptions(
        input_type=body.input_type or input_type,
        dimensions=body.output_dimension or None,
        embedding_dtype=EmbeddingDtype.float32,
        outputs=("dense",),
        truncation=body.truncate or "model",
    )
    if body.images:
        return await engine.encode_media(body.images, Modality.image, options)
    return await engine.encode(body.texts or [], options)


async def _write(engine: AsyncEmbeddingEngine, rows: Rows, kind: EmbeddingType) -> object:
    """The vectors as a list of JSON."""
    vectors = rows if kind in _FLOATS else await engine.quantize(rows, EmbeddingDtype(kind))
    write = to_base64 if kind == "base64" else np.ascontiguousarray
    return await encode_list(lambda index: write(vectors[index]), len(vectors), vectors.size)


def _respond(results: Mapping[str, object], meta: Mapping[str, object], *, version: Version) -> Response:
    return json_response(
        {"id": str(uuid.uuid4()), **results, "meta": {"api_version": {"version": version}, **meta}}
    )
