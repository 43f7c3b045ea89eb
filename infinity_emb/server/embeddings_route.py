"""`/embeddings`: OpenAI's route for texts, images and audio, and infinity's older ones for the latter two.

Knows nothing of how an engine computes or how bytes are made; errors are raised, `errors.py` answers.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Annotated, Any

from fastapi import Body
from starlette.requests import Request
from starlette.responses import Response

from infinity_emb.embedding import Embeddings, EmbedOptions
from infinity_emb.engine import AsyncEmbeddingEngine
from infinity_emb.errors import ModelNotDeployedError
from infinity_emb.primitives import Capability, EmbeddingEncodingFormat, Modality
from infinity_emb.server.api_route import ApiRoute, Task
from infinity_emb.server.disconnect import cancel_on_disconnect
from infinity_emb.server.embedding_options import check_media_members, read_options
from infinity_emb.server.encode import embeddings_response
from infinity_emb.server.members import check_num_members
from infinity_emb.server.schemas.embeddings import (
    AUDIO_EXAMPLES,
    EMBEDDING_EXAMPLES,
    IMAGE_EXAMPLES,
    EmbeddingRequest,
    EmbeddingResponse,
    MediaRequest,
)

# Each takes as long to prepare as hundreds of texts.
MAX_MEDIA = 32


class EmbeddingsRoute(Task):
    """The handlers, over one app's engines."""

    def routes(self) -> list[ApiRoute]:
        """Where the handlers are reached."""
        answer = EmbeddingResponse
        return [
            ApiRoute.of_task("/embeddings", self.embeddings, answer),
            ApiRoute.of_task("/embeddings_image", self.embeddings_image, answer, is_deprecated=True),
            ApiRoute.of_task("/embeddings_audio", self.embeddings_audio, answer, is_deprecated=True),
        ]

    async def embeddings(
        self, body: Annotated[EmbeddingRequest, Body(openapi_examples=EMBEDDING_EXAMPLES)], request: Request
    ) -> Response:
        """One vector per text, equal to `SentenceTransformer.encode`, in the order of the texts.

        Works with OpenAI's clients: `OpenAI(base_url="http://localhost:7997/v1", api_key="any")`. What
        OpenAI does not have is sent as `extra_body`.
        """
        if body.modality not in (None, Modality.text):
            return await self._embed_media(body, body.modality, request)
        self.check_num_inputs(body.input, "input")
        engine, input_type = self.served.choose(body.model_name, _capability_for(body))
        options = read_options(body, input_type=input_type)
        _check_has_vector(engine, options)
        answer = await cancel_on_disconnect(request, _start_encoding(engine, body, options))
        return await _respond(answer, engine, body, is_named=options.outputs is not None)

    async def embeddings_image(
        self, body: Annotated[MediaRequest, Body(openapi_examples=IMAGE_EXAMPLES)], request: Request
    ) -> Response:
        """`/embeddings` with `"modality": "image"`."""
        return await self._embed_media(body, Modality.image, request)

    async def embeddings_audio(
        self, body: Annotated[MediaRequest, Body(openapi_examples=AUDIO_EXAMPLES)], request: Request
    ) -> Response:
        """`/embeddings` with `"modality": "audio"`."""
        return await self._embed_media(body, Modality.audio, request)

    async def _embed_media(self, body: MediaRequest, modality: Modality, request: Request) -> Response:
        self.check_num_inputs(body.input, "input")
        check_num_members(body.input, limit=MAX_MEDIA, name="input")
        capability: Capability = "image_embed" if modality is Modality.image else "audio_embed"
        engine, input_type = self.served.choose(body.model_name, capability)
        options = EmbedOptions(input_type=input_type)
        if isinstance(body, EmbeddingRequest):
            check_media_members(body)
            options = read_options(body, input_type=input_type)
        answer = await cancel_on_disconnect(request, engine.encode_media(body.input, modality, options))
        return await _respond(answer, engine, body, is_named=options.outputs is not None)


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
    answer: Embeddings, engine: AsyncEmbeddingEngine, body: MediaRequest, *, is_named: bool = False
) -> Response:
    return await embeddings_response(
        answer,
        encoding_format=body.encoding_format or EmbeddingEncodingFormat.float,
        model=engine.engine_args.served_model_name,
        is_named=is_named,
    )
