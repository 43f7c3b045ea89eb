"""Cohere's `/v1/embed`, `/v2/embed` and `/v2/rerank`, and its form of `/v1/rerank`.

Source: https://docs.cohere.com/reference/embed and https://docs.cohere.com/reference/rerank
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from infinity_emb.engine.embedding_options import NEEDS_RANGES
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.results import Embeddings, EmbedOptions
from infinity_emb.items import Float32Array
from infinity_emb.server.dialects.cohere.errors import ERRORS
from infinity_emb.server.dialects.cohere.schemas import (
    COHERE_EMBED_EXAMPLES,
    COHERE_RERANK_EXAMPLES,
    CohereEmbedRequest,
    CohereEmbedResponse,
    CohereFloatsResponse,
    CohereRerankRequest,
    CohereRerankResponse,
    EmbeddingType,
)
from infinity_emb.server.request_errors import body_error
from infinity_emb.server.requests.call import Call
from infinity_emb.server.requests.embedding_options import normalizes_for_dialect
from infinity_emb.server.requests.fields import check_num_items
from infinity_emb.server.requests.headers import find_header
from infinity_emb.server.responses.json_vectors import json_response, to_base64
from infinity_emb.server.responses.sliced import JsonList, mark_long_texts
from infinity_emb.server.routes.embeddings import MAX_MEDIA
from infinity_emb.server.routes.rerank import (
    count_values,
    describe_ranking,
    get_object_writer,
    rank,
    rerank_documents,
)
from infinity_emb.server.routing import Endpoint, Form
from infinity_emb.server.schemas.rerank import RerankObjectsResponse, RerankRequest
from infinity_emb.types import EmbeddingDtype, Modality

Version = Literal["1", "2"]

_FLOATS = ("float", "base64")
_DEFAULT_TYPES: tuple[EmbeddingType, ...] = ("float",)


async def cohere_embed_v1(body: CohereEmbedRequest, call: Call) -> Response:
    """Embed texts or images (v1).

    Returns a list of vectors, or one for each embedding type.
    `cohere.Client(base_url="http://localhost:7997")` connects to this server.
    """
    return await _embed(body, call, version="1")


async def cohere_embed(body: CohereEmbedRequest, call: Call) -> Response:
    """Embed texts or images (v2).

    Returns a list of vectors for each embedding type.
    `cohere.ClientV2(base_url="http://localhost:7997")` connects to this server.
    """
    return await _embed(body, call, version="2")


async def cohere_rerank(body: CohereRerankRequest, call: Call) -> Response:
    """Rank documents by relevance to a query (v2).

    Returns the documents best first.
    """
    ranking = await rank(body, call, top_n=body.top_n, truncate=body.truncate)
    results = describe_ranking(ranking, get_object_writer(body, default=False))
    meta = {"billed_units": {"search_units": 1}, "tokens": {"input_tokens": ranking.num_tokens}}
    return _respond({"results": results}, meta, version="2")


async def cohere_rerank_v1(body: RerankRequest, call: Call) -> Response:
    """Rank documents; each document in the response is an object with a text."""
    return await rerank_documents(body, call, write=get_object_writer(body, default=False))


def is_cohere_sdk(request: Request) -> bool:
    """Recognise Cohere's SDKs by a header that all of them send.

    They read `document.text`, also where `--url-prefix /v1` makes `/v1/rerank` the route of infinity, whose
    clients expect a string.
    """
    return (find_header(request.scope, b"x-fern-sdk-name") or "").startswith("cohere")


async def _embed(body: CohereEmbedRequest, call: Call, *, version: Version) -> Response:
    _check_inputs(body)
    capability: Literal["embed", "image_embed"] = "embed" if body.texts else "image_embed"
    engine, input_type = call.resolve(body, capability, body.texts or [])
    result = await _encode(engine, body, input_type)
    vectors = np.stack(result.get("dense"))  # (N, D) float32, from which every type is made
    types = dict.fromkeys(body.embedding_types or _DEFAULT_TYPES)
    by_type = {kind: await _write(engine, vectors, kind) for kind in types}
    is_list = version == "1" and not body.embedding_types
    results = {
        "response_type": "embeddings_floats" if is_list else "embeddings_by_type",
        "embeddings": by_type["float"] if is_list else by_type,
        **({"texts": _write_texts(body.texts)} if body.texts else {}),
    }
    units = {"images": len(body.images)} if body.images else {}
    tokens = {"input_tokens": result.num_tokens}
    return _respond(results, {"billed_units": {**tokens, **units}, "tokens": tokens}, version=version)


def _check_inputs(body: CohereEmbedRequest) -> None:
    if (body.texts is None) == (body.images is None):
        raise body_error("missing", "send either 'texts', 'images' or 'inputs'", loc=["texts"])
    check_num_items(body.images or [], limit=MAX_MEDIA, name="images")
    for kind in map(str, NEEDS_RANGES) if body.images else ():
        if kind in (body.embedding_types or ()):
            message = f"{kind!r} is not available for images, because its ranges come from texts"
            raise body_error("not_for_images", message, loc=["embedding_types"], given=kind)


async def _encode(
    engine: AsyncEmbeddingEngine, body: CohereEmbedRequest, input_type: str | None
) -> Embeddings:
    options = EmbedOptions(
        input_type=body.input_type or input_type,
        dimensions=body.output_dimension,
        embedding_dtype=EmbeddingDtype.float32,
        normalize=normalizes_for_dialect(engine),
        outputs=("dense",),
        truncation=body.truncate or "model",
        max_tokens=body.max_tokens,
    )
    if body.images:
        return await engine.embedder.encode_media(body.images, Modality.image, options)
    return await engine.embedder.encode(body.texts or [], options)


async def _write(engine: AsyncEmbeddingEngine, vectors: Float32Array, kind: EmbeddingType) -> object:
    """Write the vectors as a JSON list of one type."""
    converted = vectors
    if kind not in _FLOATS:
        converted = await engine.embedder.quantize(
            vectors, EmbeddingDtype(kind), is_normalized=normalizes_for_dialect(engine)
        )
    write = to_base64 if kind == "base64" else np.ascontiguousarray
    return JsonList(lambda index: write(converted[index]), len(converted), converted.size)


def _write_texts(texts: Sequence[str]) -> JsonList:
    num_values = count_values(len(texts), has_texts=True)
    return JsonList(lambda index: mark_long_texts(texts[index]), len(texts), num_values)


def _respond(results: Mapping[str, object], meta: Mapping[str, object], *, version: Version) -> Response:
    return json_response(
        {"id": str(uuid.uuid4()), **results, "meta": {"api_version": {"version": version}, **meta}}
    )


ENDPOINTS = [
    Endpoint(path, [Form(handler, schema, response, examples, errors=ERRORS)], is_at_v1=False)
    for path, handler, schema, response, examples in (
        (
            "/v1/embed",
            cohere_embed_v1,
            CohereEmbedRequest,
            CohereFloatsResponse | CohereEmbedResponse,
            COHERE_EMBED_EXAMPLES,
        ),
        ("/v2/embed", cohere_embed, CohereEmbedRequest, CohereEmbedResponse, COHERE_EMBED_EXAMPLES),
        ("/v2/rerank", cohere_rerank, CohereRerankRequest, CohereRerankResponse, COHERE_RERANK_EXAMPLES),
    )
]

# Path of an endpoint → more forms of it.
FORMS = {"/rerank": [Form(cohere_rerank_v1, RerankRequest, RerankObjectsResponse, is_from=is_cohere_sdk)]}
