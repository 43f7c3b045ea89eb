"""`/embeddings`: OpenAI's route for texts, images and audio; Jina's `/multi-vector` and two older routes."""

from __future__ import annotations

from starlette.responses import Response

from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.results import Embeddings, EmbedOptions
from infinity_emb.errors import ModelNotDeployedError
from infinity_emb.server.requests.call import Call
from infinity_emb.server.requests.embedding_options import check_media_fields, check_normalize, read_options
from infinity_emb.server.requests.fields import check_num_items, check_token_ids_allowed
from infinity_emb.server.requests.headers import join_headers
from infinity_emb.server.responses.encoding import Encoding, read_encoding
from infinity_emb.server.responses.json_vectors import embeddings_response
from infinity_emb.server.routing import Endpoint, Form
from infinity_emb.server.schemas.embeddings import (
    AUDIO_EXAMPLES,
    EMBEDDING_EXAMPLES,
    IMAGE_EXAMPLES,
    MULTIVECTOR_EXAMPLES,
    EmbeddingRequest,
    EmbeddingResponse,
    MediaRequest,
)
from infinity_emb.types import Capability, Modality, TokenIdPolicy

# Preparing one takes as long as preparing hundreds of texts.
MAX_MEDIA = 32


async def embeddings(body: EmbeddingRequest, call: Call) -> Response:
    """Embed texts, images or audio.

    Returns one vector per input, in order; vectors of texts are equal to `SentenceTransformer.encode`.

    Works with OpenAI's clients: `OpenAI(base_url="http://localhost:7997/v1", api_key="any")`. Pass fields
    that OpenAI does not have as `extra_body`.
    """
    if body.modality not in (None, Modality.text):
        return await _embed_media(body, body.modality, call)
    engine, input_type = call.resolve_embedder(body, body.input, _choose_capability(body))
    encoding = read_encoding(body, accept=join_headers(call.request.scope, b"accept"))
    options = read_options(body, input_type=input_type)
    check_normalize(engine, options)
    _check_has_vector(engine, options)
    if body.late_chunking is None:
        result = await engine.embedder.encode(body.input, options)
    else:
        result = await engine.embedder.encode_passages(
            body.input, options, chunk_size=body.late_chunking.chunk_size
        )
    return _respond(result, engine, encoding)


async def multi_vector(body: EmbeddingRequest, call: Call) -> Response:
    """Embed texts with one vector per token.

    Works like `/embeddings` with `"return_multivector": true`. Clients of Jina use it with late-interaction
    models.
    """
    return await embeddings(body.model_copy(update={"return_multivector": True}), call)


async def embeddings_image(body: MediaRequest, call: Call) -> Response:
    """Embed images.

    Works like `/embeddings` with `"modality": "image"`.
    """
    return await _embed_media(_to_embedding_request(body), Modality.image, call)


async def embeddings_audio(body: MediaRequest, call: Call) -> Response:
    """Embed audio clips.

    Works like `/embeddings` with `"modality": "audio"`.
    """
    return await _embed_media(_to_embedding_request(body), Modality.audio, call)


async def _embed_media(body: EmbeddingRequest, modality: Modality, call: Call) -> Response:
    call.check_num_inputs(body, body.input)
    check_num_items(body.input, limit=MAX_MEDIA, name="input")
    check_token_ids_allowed(body.input, TokenIdPolicy.refuse, name="input")
    check_media_fields(body)
    capability: Capability = "image_embed" if modality is Modality.image else "audio_embed"
    engine, input_type = call.resolve(body, capability, body.input)
    encoding = read_encoding(body, accept=join_headers(call.request.scope, b"accept"))
    options = read_options(body, input_type=input_type)
    check_normalize(engine, options)
    result = await engine.embedder.encode_media(body.input, modality, options)
    return _respond(result, engine, encoding)


def _to_embedding_request(body: MediaRequest) -> EmbeddingRequest:
    return EmbeddingRequest.model_construct(**dict(body))


def _choose_capability(body: EmbeddingRequest) -> Capability:
    return "embed_sparse" if body.outputs is not None and set(body.outputs) == {"sparse"} else "embed"


def _check_has_vector(engine: AsyncEmbeddingEngine, options: EmbedOptions) -> None:
    """Raise for a sparse model if the client names no outputs: it would not find the field `embedding`."""
    if options.outputs is None and engine.info.outputs[:1] == ("sparse",):
        raise ModelNotDeployedError(
            f"model {engine.engine_args.served_model_name!r} returns sparse vectors; set outputs=['sparse'],"
            " or use /embed_sparse"
        )


def _respond(result: Embeddings, engine: AsyncEmbeddingEngine, encoding: Encoding) -> Response:
    name = engine.engine_args.served_model_name
    return embeddings_response(result, encoding=encoding, model=name)


_BINARY = ["application/octet-stream"]

ENDPOINTS = [
    Endpoint(
        "/embeddings",
        [Form(embeddings, EmbeddingRequest, EmbeddingResponse, EMBEDDING_EXAMPLES)],
        binary_types=_BINARY,
    ),
    Endpoint(
        "/multi-vector",
        [Form(multi_vector, EmbeddingRequest, EmbeddingResponse, MULTIVECTOR_EXAMPLES)],
        binary_types=_BINARY,
    ),
    Endpoint(
        "/embeddings_image",
        [Form(embeddings_image, MediaRequest, EmbeddingResponse, IMAGE_EXAMPLES)],
        is_deprecated=True,
        binary_types=_BINARY,
    ),
    Endpoint(
        "/embeddings_audio",
        [Form(embeddings_audio, MediaRequest, EmbeddingResponse, AUDIO_EXAMPLES)],
        is_deprecated=True,
        binary_types=_BINARY,
    ),
]
