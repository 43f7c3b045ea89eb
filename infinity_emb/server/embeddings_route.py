"""`/embeddings`: OpenAI's route for texts, images and audio; Jina's `/multi-vector`, infinity's older two.

Knows nothing of how an engine computes or how bytes are made; errors are raised, `errors.py` answers.
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from fastapi import Body
from starlette.requests import Request
from starlette.responses import Response

from infinity_emb.embedding import Embeddings, EmbedOptions
from infinity_emb.engine import AsyncEmbeddingEngine
from infinity_emb.errors import ModelNotDeployedError
from infinity_emb.postprocess import unit_rows
from infinity_emb.primitives import Capability, Modality, TokenIdsOf
from infinity_emb.server.api_route import ApiRoute, Task
from infinity_emb.server.disconnect import cancel_on_disconnect
from infinity_emb.server.embedding_options import check_media_members, read_encoding, read_options
from infinity_emb.server.encode import Encoding, embeddings_response
from infinity_emb.server.error_docs import TASK_ERRORS, VOYAGE_ERRORS, either
from infinity_emb.server.inputs import check_ids_allowed
from infinity_emb.server.members import check_num_members
from infinity_emb.server.schemas.embeddings import (
    AUDIO_EXAMPLES,
    EMBEDDING_EXAMPLES,
    IMAGE_EXAMPLES,
    MULTIVECTOR_EXAMPLES,
    EmbeddingRequest,
    EmbeddingResponse,
    MediaRequest,
)
from infinity_emb.server.schemas.voyage import VoyageEmbeddingRequest
from infinity_emb.server.vector_bytes import Vector

# Each takes as long to prepare as hundreds of texts.
MAX_MEDIA = 32


class EmbeddingsRoute(Task):
    """The handlers, over one app's engines."""

    def routes(self) -> list[ApiRoute]:
        """Where the handlers are reached."""
        handlers = {
            "/embeddings": self.embeddings,
            "/multi-vector": self.multi_vector,
            "/embeddings_image": self.embeddings_image,
            "/embeddings_audio": self.embeddings_audio,
        }
        return [
            ApiRoute.of_task(
                path,
                answer,
                EmbeddingResponse,
                is_deprecated=path in ("/embeddings_image", "/embeddings_audio"),
                media_types=["application/octet-stream"],
                errors=either(TASK_ERRORS, VOYAGE_ERRORS) if path == "/embeddings" else TASK_ERRORS,
            )
            for path, answer in handlers.items()
        ]

    async def embeddings(
        self,
        body: Annotated[EmbeddingRequest | VoyageEmbeddingRequest, Body(openapi_examples=EMBEDDING_EXAMPLES)],
        request: Request,
    ) -> Response:
        """One vector per text, equal to `SentenceTransformer.encode`, in the order of the texts.

        Works with OpenAI's clients: `OpenAI(base_url="http://localhost:7997/v1", api_key="any")`. What
        OpenAI does not have is sent as `extra_body`.
        """
        if body.modality not in (None, Modality.text):
            return await self._embed_media(body, body.modality, request)
        self.check_num_inputs(body.input, "input")
        encoding = _encoding_of(body, request)
        engine, input_type = self.served.choose(body.model_name, _capability_for(body))
        check_ids_allowed(body.input, engine.engine_args.token_ids, name="input")
        options = read_options(body, input_type=input_type)
        _check_has_vector(engine, options)
        answer = await cancel_on_disconnect(request, _start_encoding(engine, body, options))
        return await _respond(answer, engine, body, encoding)

    async def multi_vector(
        self, body: Annotated[EmbeddingRequest, Body(openapi_examples=MULTIVECTOR_EXAMPLES)], request: Request
    ) -> Response:
        """`/embeddings` with `"return_multivector": true`, as clients of Jina ask late-interaction models."""
        return await self.embeddings(body.model_copy(update={"return_multivector": True}), request)

    async def embeddings_image(
        self, body: Annotated[MediaRequest, Body(openapi_examples=IMAGE_EXAMPLES)], request: Request
    ) -> Response:
        """`/embeddings` with `"modality": "image"`."""
        return await self._embed_media(_without_extras(body), Modality.image, request)

    async def embeddings_audio(
        self, body: Annotated[MediaRequest, Body(openapi_examples=AUDIO_EXAMPLES)], request: Request
    ) -> Response:
        """`/embeddings` with `"modality": "audio"`."""
        return await self._embed_media(_without_extras(body), Modality.audio, request)

    async def _embed_media(self, body: EmbeddingRequest, modality: Modality, request: Request) -> Response:
        self.check_num_inputs(body.input, "input")
        check_num_members(body.input, limit=MAX_MEDIA, name="input")
        check_ids_allowed(body.input, TokenIdsOf.refuse, name="input")
        check_media_members(body)
        encoding = _encoding_of(body, request)
        capability: Capability = "image_embed" if modality is Modality.image else "audio_embed"
        engine, input_type = self.served.choose(body.model_name, capability)
        options = read_options(body, input_type=input_type)
        answer = await cancel_on_disconnect(request, engine.encode_media(body.input, modality, options))
        return await _respond(answer, engine, body, encoding)


def _without_extras(body: MediaRequest) -> EmbeddingRequest:
    return EmbeddingRequest.model_construct(**dict(body))


def _encoding_of(body: EmbeddingRequest, request: Request) -> Encoding:
    return read_encoding(body, accept=request.headers.get("accept"))


def _capability_for(body: EmbeddingRequest) -> Capability:
    return "embed_sparse" if body.outputs is not None and set(body.outputs) == {"sparse"} else "embed"


def _check_has_vector(engine: AsyncEmbeddingEngine, options: EmbedOptions) -> None:
    """A client that asks for nothing special reads `embedding`, and must not find it missing."""
    if options.outputs is None and engine.info.outputs[:1] == ("sparse",):
        raise ModelNotDeployedError(
            f"model {engine.engine_args.served_model_name!r} answers sparse vectors; ask for"
            " outputs=['sparse'], or use the route /embed_sparse"
        )


def _start_encoding(
    engine: AsyncEmbeddingEngine, body: EmbeddingRequest, options: EmbedOptions
) -> Coroutine[Any, Any, Embeddings]:
    if body.late_chunking is None:
        return engine.encode(body.input, options)
    return engine.encode_passages(body.input, options, chunk_size=body.late_chunking.chunk_size)


async def _respond(
    answer: Embeddings, engine: AsyncEmbeddingEngine, body: EmbeddingRequest, encoding: Encoding
) -> Response:
    return await embeddings_response(
        _scaled(answer) if body.normalized else answer,
        encoding=encoding,
        model=engine.engine_args.served_model_name,
    )


def _scaled(answer: Embeddings) -> Embeddings:
    """With float vectors of length 1."""
    dense, matrices = answer.dense, answer.multivector
    return replace(
        answer,
        dense=None if dense is None else list(_unit_floats(np.stack(dense))),
        multivector=None if matrices is None else [_unit_floats(each) for each in matrices],
    )


def _unit_floats(rows: Vector) -> Vector:
    """(N, D), of the same number format; whole numbers and bits have no length to scale."""
    if not np.issubdtype(rows.dtype, np.floating):
        return rows
    # In float32: the squares of float16 numbers are soon beyond its range.
    scaled: Vector = unit_rows(rows.astype(np.float32)).astype(rows.dtype)
    return scaled
