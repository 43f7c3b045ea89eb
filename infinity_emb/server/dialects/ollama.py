"""Ollama's routes: `/api/embed`, `/api/embeddings`, and those that tell what is served.

Vectors always have length 1. Knows nothing of how an engine computes or how bytes are made.
Source: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Annotated

import numpy as np
from fastapi import Body
from starlette.requests import Request
from starlette.responses import Response

from infinity_emb import __version__
from infinity_emb.backends.base import Rows
from infinity_emb.embedding import EmbedOptions
from infinity_emb.engine import AsyncEmbeddingEngine
from infinity_emb.engine_array import Resolved
from infinity_emb.errors import UnknownModel
from infinity_emb.postprocess import unit_rows
from infinity_emb.primitives import EmbeddingDtype
from infinity_emb.server.api_route import ApiRoute, Handler, Task
from infinity_emb.server.disconnect import cancel_on_disconnect
from infinity_emb.server.encode import encode_list, json_response
from infinity_emb.server.error_docs import NOT_FOUND, NOT_READY, TASK_ERRORS
from infinity_emb.server.error_shape import note_shape
from infinity_emb.server.schemas.ollama import (
    OLLAMA_EMBED_EXAMPLES,
    OLLAMA_PROMPT_EXAMPLES,
    OLLAMA_SHOW_EXAMPLES,
    OllamaEmbedRequest,
    OllamaEmbedResponse,
    OllamaError,
    OllamaPromptRequest,
    OllamaPromptResponse,
    OllamaShow,
    OllamaShowRequest,
    OllamaTags,
    OllamaVersion,
    shape_error,
)

# What Ollama's clients put behind a name that has no tag.
_DEFAULT_TAG = ":latest"


class OllamaRoutes(Task):
    """The handlers, over one app's engines."""

    def routes(self) -> list[ApiRoute]:
        """Where the handlers are reached."""
        return [
            _task_route("/api/embed", self.ollama_embed, OllamaEmbedResponse),
            _task_route("/api/embeddings", self.ollama_embeddings, OllamaPromptResponse),
            _task_route("/api/show", self.ollama_show, OllamaShow),
            _reading_route("/api/tags", self.ollama_tags, OllamaTags),
            _reading_route("/api/version", self.ollama_version, OllamaVersion),
        ]

    async def ollama_embed(
        self,
        body: Annotated[OllamaEmbedRequest, Body(openapi_examples=OLLAMA_EMBED_EXAMPLES)],
        request: Request,
    ) -> Response:
        """One vector per text; `Client(host="http://localhost:7997").embed`."""
        started_ns = time.perf_counter_ns()
        self.check_num_inputs(body.input, "input")
        engine, input_type = self._choose(body.model_name)
        options = _options(input_type, body)
        rows, num_tokens = await _embed(engine, body.input, options, request)
        return json_response(
            {
                "model": body.model_name or engine.engine_args.served_model_name,
                "embeddings": await encode_list(lambda index: rows[index], len(rows), rows.size),
                "total_duration": time.perf_counter_ns() - started_ns,
                "load_duration": 0,
                "prompt_eval_count": num_tokens,
            }
        )

    async def ollama_embeddings(
        self,
        body: Annotated[OllamaPromptRequest, Body(openapi_examples=OLLAMA_PROMPT_EXAMPLES)],
        request: Request,
    ) -> Response:
        """One text, one vector: Ollama's older route."""
        engine, input_type = self._choose(body.model_name)
        texts = [body.prompt] if body.prompt else []
        rows, _ = await _embed(engine, texts, _options(input_type), request)
        return json_response({"embedding": rows[0] if texts else []})

    async def ollama_tags(self, request: Request) -> Response:
        """The served models, as Ollama lists those that it has downloaded."""
        note_shape(request, shape_error)
        return json_response({"models": [self._describe(engine) for engine in self.served.array]})

    async def ollama_show(
        self,
        body: Annotated[OllamaShowRequest, Body(openapi_examples=OLLAMA_SHOW_EXAMPLES)],
        request: Request,
    ) -> Response:
        """What is known of one served model."""
        engine, _ = self._choose(body.model_name)
        described, info = self._describe(engine), engine.info
        lengths = {"embedding_length": info.embedding_dimension, "context_length": info.max_tokens}
        return json_response(
            {
                "modified_at": described["modified_at"],
                "details": described["details"],
                "model_info": {
                    "general.architecture": str(info.kind),
                    **{f"{info.kind}.{name}": length for name, length in lengths.items() if length},
                },
                "capabilities": ["embedding"] if "embed" in info.capabilities else [],
            }
        )

    async def ollama_version(self) -> Response:
        """This server's own version."""
        return json_response({"version": __version__})

    def _choose(self, model: str | None) -> Resolved:
        """As all routes choose; a name that is not served may be so without the tag."""
        try:
            return self.served.choose(model, "embed")
        except UnknownModel:
            if model is None or not model.endswith(_DEFAULT_TAG):
                raise
            return self._choose(model.removesuffix(_DEFAULT_TAG))

    def _describe(self, engine: AsyncEmbeddingEngine) -> dict[str, object]:
        name, info = engine.engine_args.served_model_name, engine.info
        return {
            "name": name,
            "model": name,
            "modified_at": datetime.fromtimestamp(self.served.started_at, timezone.utc).isoformat(),
            "size": 0,
            "digest": info.revision or "",
            "details": {
                "format": info.engine,
                "family": str(info.kind),
                "families": [str(info.kind)],
                "parameter_size": "",
                "quantization_level": info.dtype,
            },
        }


def _task_route(path: str, answer: Handler, response_model: object) -> ApiRoute:
    errors = {**TASK_ERRORS, 404: NOT_FOUND}
    return ApiRoute.of_dialect(path, answer, response_model, OllamaError, errors=errors)


def _reading_route(path: str, answer: Handler, response_model: object) -> ApiRoute:
    return ApiRoute(
        path=path,
        method="GET",
        answer=answer,
        response_model=response_model,
        errors={503: {**NOT_READY, "model": OllamaError}},
        is_at_v1=False,
        error_shape=shape_error,
    )


def _options(input_type: str | None, body: OllamaEmbedRequest | None = None) -> EmbedOptions:
    return EmbedOptions(
        input_type=input_type,
        dimensions=(body and body.dimensions) or None,
        embedding_dtype=EmbeddingDtype.float32,
        outputs=("dense",),
        truncation=(body and body.truncate) or "model",
    )


async def _embed(
    engine: AsyncEmbeddingEngine, texts: list[str], options: EmbedOptions, request: Request
) -> tuple[Rows, int]:
    """(N, D) float32, each row of length 1 unless it is 0; and the number of tokens."""
    if not texts:
        return np.zeros((0, 0), dtype=np.float32), 0
    answer = await cancel_on_disconnect(request, engine.encode(texts, options))
    assert answer.dense is not None, "an engine answers what it was asked for"
    return unit_rows(np.stack(answer.dense)), answer.num_tokens
