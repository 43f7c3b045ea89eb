"""OpenAI's routes: embeddings and models, at `{prefix}/...` and `{prefix}/v1/...`.

Knows nothing of how an engine computes or how bytes are made; errors are raised, `errors.py` answers.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Annotated, Any

import numpy.typing as npt
from fastapi import APIRouter, Body
from fastapi.params import Depends
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from infinity_emb.engine import AsyncEmbeddingEngine
from infinity_emb.errors import UnknownModel
from infinity_emb.primitives import Capability, EmbeddingEncodingFormat, Modality
from infinity_emb.server.disconnect import cancel_on_disconnect
from infinity_emb.server.encode import embeddings_response, json_response
from infinity_emb.server.error_docs import (
    INVALID,
    NOT_FOUND,
    NOT_READY,
    TASK_ERRORS,
    UNAUTHORIZED,
    Documented,
)
from infinity_emb.server.json_route import JsonRoute
from infinity_emb.server.model_entry import describe_model
from infinity_emb.server.schemas import (
    EMBEDDING_EXAMPLES,
    EmbeddingRequest,
    EmbeddingResponse,
    ModelEntry,
    ModelList,
)
from infinity_emb.server.served_engines import ServedEngines
from infinity_emb.server.validation import body_error

CAPABILITY_OF: dict[Modality, Capability] = {
    Modality.text: "embed",
    Modality.image: "image_embed",
    Modality.audio: "audio_embed",
}


class OpenAIRoutes:
    """The handlers, over one app's engines."""

    def __init__(self, served: ServedEngines, *, max_client_batch_size: int) -> None:
        self._served = served
        self._max_client_batch_size = max_client_batch_size

    async def embeddings(
        self, body: Annotated[EmbeddingRequest, Body(openapi_examples=EMBEDDING_EXAMPLES)], request: Request
    ) -> Response:
        """One vector per text, equal to `SentenceTransformer.encode`, in the order of the texts.

        Works with OpenAI's clients: `OpenAI(base_url="http://localhost:7997/v1", api_key="any")`.
        """
        check_batch_size(body.input, self._max_client_batch_size)
        modality = body.modality or Modality.text
        engine = self._engine_for(body.model_name, CAPABILITY_OF[modality])
        vectors, num_tokens = await cancel_on_disconnect(request, start_embedding(engine, body, modality))
        return await embeddings_response(
            vectors,
            encoding_format=body.encoding_format or EmbeddingEncodingFormat.float,
            model=engine.engine_args.served_model_name,
            num_tokens=num_tokens,
        )

    async def models(self) -> Response:
        """Every served model, what was detected about it, and how full its queue is."""
        entries = [describe_model(engine, self._served.started_at) for engine in self._served.array]
        return json_response({"data": entries, "object": "list"})

    async def model(self, model_id: str) -> Response:
        """One served model, by name or alias; names may contain slashes."""
        if not model_id:  # GET /models/ with its slash
            return await self.models()
        try:
            engine = self._served.array[model_id]
        except UnknownModel as exc:
            raise HTTPException(404, str(exc)) from None
        return json_response(describe_model(engine, self._served.started_at))

    def _engine_for(self, name: str | None, capability: Capability) -> AsyncEmbeddingEngine:
        array = self._served.array
        return array.first_with(capability) if name is None else array[name]


def add_openai_routes(
    router: APIRouter, routes: OpenAIRoutes, *, prefix: str, dependencies: Sequence[Depends]
) -> None:
    """Register the routes under both prefixes; the OpenAPI document shows `{prefix}/...` alone.

    dependencies: declared, so that the document shows how to authorize.
    """
    unauthorized: dict[int | str, Documented] = {401: UNAUTHORIZED} if dependencies else {}
    for base in api_prefixes(prefix):
        is_documented = base == prefix
        router.add_api_route(
            f"{base}/embeddings",
            routes.embeddings,
            methods=["POST"],
            operation_id="embeddings",
            response_model=EmbeddingResponse,
            responses={**unauthorized, **TASK_ERRORS},
            dependencies=dependencies,
            include_in_schema=is_documented,
            route_class_override=JsonRoute,
        )
        router.add_api_route(
            f"{base}/models",
            routes.models,
            operation_id="models",
            response_model=ModelList,
            responses={**unauthorized, 503: NOT_READY},
            dependencies=dependencies,
            include_in_schema=is_documented,
        )
        router.add_api_route(
            f"{base}/models/{{model_id:path}}",
            routes.model,
            operation_id="model",
            response_model=ModelEntry,
            responses={**unauthorized, 404: NOT_FOUND, 422: INVALID, 503: NOT_READY},
            dependencies=dependencies,
            include_in_schema=is_documented,
        )


def api_prefixes(prefix: str) -> list[str]:
    """`{prefix}` and `{prefix}/v1`; the former alone where it ends in /v1 itself."""
    return [prefix] if prefix.endswith("/v1") else [prefix, f"{prefix}/v1"]


def start_embedding(
    engine: AsyncEmbeddingEngine, body: EmbeddingRequest, modality: Modality
) -> Coroutine[Any, Any, tuple[list[npt.NDArray[Any]], int]]:
    """The engine's call for this modality, not awaited."""
    if modality is Modality.image:
        return engine.image_embed(images=list(body.input), matryoshka_dim=body.matryoshka_dim)
    if modality is Modality.audio:
        return engine.audio_embed(audios=list(body.input), matryoshka_dim=body.matryoshka_dim)
    return engine.embed(body.input, body.matryoshka_dim, truncate=body.truncate is not False)


def check_batch_size(inputs: Sequence[str], max_client_batch_size: int) -> None:
    """Raises a 422 for more inputs than one request may have."""
    if len(inputs) > max_client_batch_size:
        message = (
            f"has {len(inputs)} members, the limit is {max_client_batch_size}; send several requests, or"
            " start the server with a larger --max-client-batch-size"
        )
        raise body_error("too_long", message, loc=["input"], given=inputs)
