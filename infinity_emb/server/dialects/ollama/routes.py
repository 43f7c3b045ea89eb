"""Ollama's routes that embed texts: `/api/embed` and `/api/embeddings`.

Vectors always have length 1. Source: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from starlette.responses import Response

from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.results import EmbedOptions
from infinity_emb.items import Float32Array
from infinity_emb.server.dialects.ollama.errors import ERRORS
from infinity_emb.server.dialects.ollama.names import match_name
from infinity_emb.server.dialects.ollama.schemas import (
    OLLAMA_EMBED_EXAMPLES,
    OLLAMA_PROMPT_EXAMPLES,
    OllamaEmbedRequest,
    OllamaEmbedResponse,
    OllamaPromptRequest,
    OllamaPromptResponse,
    OllamaTextRequest,
)
from infinity_emb.server.requests.call import Call
from infinity_emb.server.requests.embedding_options import normalizes_for_dialect
from infinity_emb.server.responses.json_vectors import json_response
from infinity_emb.server.responses.sliced import JsonList
from infinity_emb.server.routing import Endpoint, Form
from infinity_emb.types import EmbeddingDtype, Truncation


async def ollama_embed(body: OllamaEmbedRequest, call: Call) -> Response:
    """Embed texts.

    Returns one vector of length 1 per text. `Client(host="http://localhost:7997")` connects to this server.
    """
    started_ns = time.perf_counter_ns()
    call.check_num_inputs(body, body.input)
    served = match_name(call, body.model_name)
    engine, input_type = served or call.find_engine(body.model_name, "embed")
    options = _make_options(body, input_type, dimensions=body.dimensions or None, truncate=body.truncate)
    vectors, num_tokens = await _embed(engine, body.input, options)
    return json_response(
        {
            "model": body.model_name if served else engine.engine_args.served_model_name,
            "embeddings": JsonList(lambda index: vectors[index], len(vectors), vectors.size),
            "total_duration": time.perf_counter_ns() - started_ns,
            "load_duration": 0,
            "prompt_eval_count": num_tokens,
        }
    )


async def ollama_embeddings(body: OllamaPromptRequest, call: Call) -> Response:
    """Embed one text.

    Ollama has deprecated this route.
    """
    engine, input_type = match_name(call, body.model_name) or call.find_engine(body.model_name, "embed")
    texts = [body.prompt] if body.prompt else []
    vectors, _ = await _embed(engine, texts, _make_options(body, input_type))
    return json_response({"embedding": vectors[0] if texts else []})


def _make_options(
    body: OllamaTextRequest,
    input_type: str | None,
    *,
    dimensions: int | None = None,
    truncate: Truncation | None = None,
) -> EmbedOptions:
    return EmbedOptions(
        input_type=input_type,
        dimensions=dimensions,
        embedding_dtype=EmbeddingDtype.float32,
        outputs=("dense",),
        truncation=truncate or "model",
        max_tokens=body.max_tokens,
    )


async def _embed(
    engine: AsyncEmbeddingEngine, texts: list[str], options: EmbedOptions
) -> tuple[Float32Array, int]:
    """Return (N, D) float32 vectors and the number of tokens."""
    if not texts:
        return np.zeros((0, 0), dtype=np.float32), 0
    options = replace(options, normalize=normalizes_for_dialect(engine))
    result = await engine.embedder.encode(texts, options)
    return np.stack(result.get("dense")), result.num_tokens


ENDPOINTS = [
    Endpoint(
        path,
        # `curl -d`, as in Ollama's documentation, sends the content type of a form.
        [Form(handler, schema, response, examples, errors=ERRORS, needs_content_type=False)],
        is_at_v1=False,
    )
    for path, handler, schema, response, examples in (
        ("/api/embed", ollama_embed, OllamaEmbedRequest, OllamaEmbedResponse, OLLAMA_EMBED_EXAMPLES),
        (
            "/api/embeddings",
            ollama_embeddings,
            OllamaPromptRequest,
            OllamaPromptResponse,
            OLLAMA_PROMPT_EXAMPLES,
        ),
    )
]
