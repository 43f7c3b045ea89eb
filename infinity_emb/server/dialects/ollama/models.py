"""Ollama's routes about models: `/api/tags`, `/api/ps`, `/api/show`, `/api/pull` and `/api/version`.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import json
from datetime import datetime, timezone

from starlette.responses import Response

from infinity_emb._version import __version__
from infinity_emb.engine.array import DEFAULT_TAG, Resolved
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.errors import ModelNotDeployedError
from infinity_emb.server.dialects.ollama.errors import ERRORS, READING_ERRORS
from infinity_emb.server.dialects.ollama.names import match_name
from infinity_emb.server.dialects.ollama.schemas import (
    OLLAMA_SHOW_EXAMPLES,
    OllamaGenerateRequest,
    OllamaRunning,
    OllamaShow,
    OllamaShowRequest,
    OllamaStatus,
    OllamaTags,
    OllamaVersion,
)
from infinity_emb.server.requests.call import Call
from infinity_emb.server.responses.json_vectors import json_response
from infinity_emb.server.routing import Endpoint, Form

# The largest time that clients in every language can parse.
_NEVER = "9999-12-31T23:59:59+00:00"


async def ollama_tags(call: Call) -> Response:
    """List the served models.

    Describes each name of a model as Ollama describes a downloaded model.
    """
    return json_response({"models": _list_models(call)})


async def ollama_ps(call: Call) -> Response:
    """List the models in memory."""
    entries = _list_models(call, only_loaded=True)
    return json_response({"models": [{**entry, "expires_at": _NEVER, "size_vram": 0} for entry in entries]})


async def ollama_show(body: OllamaShowRequest, call: Call) -> Response:
    """Describe a served model."""
    engine, _ = _find_model(body.model_name, call) or call.find_engine(None, "embed")
    info = engine.info
    lengths = {"embedding_length": info.embedding_dimension, "context_length": info.max_tokens}
    return json_response(
        {
            "modified_at": _get_start_time(call),
            "details": _describe_details(engine),
            "model_info": {
                "general.architecture": str(info.kind),
                **{f"{info.kind}.{name}": length for name, length in lengths.items() if length},
            },
            "capabilities": ["embedding"] if "embed" in info.capabilities else [],
        }
    )


async def ollama_pull(body: OllamaShowRequest, call: Call) -> Response:
    """Check that a model is served.

    Downloads nothing: the server serves the models that it was started with.
    """
    _find_model(body.model_name, call)
    return json_response({"status": "success"})


def _find_model(name: str | None, call: Call) -> Resolved | None:
    """Return the engine of a name, or None without a name.

    Raises UnknownModel for a name that is not served, even if only one model is served.
    """
    found = match_name(call, name)
    if found is None and name is not None:
        raise call.models.array.unknown_model(name)
    return found


async def ollama_generate(body: OllamaGenerateRequest, call: Call) -> Response:
    """Refuse to generate, with Ollama's message for embedding models."""
    task = call.request.url.path.rpartition("/")[2]
    _find_model(body.model, call)
    raise ModelNotDeployedError(f"{json.dumps(body.model or 'the model')} does not support {task}")


async def ollama_version(call: Call) -> Response:
    """Return the version of this server."""
    return json_response({"version": __version__})


def _list_models(call: Call, *, only_loaded: bool = False) -> list[dict[str, object]]:
    """Describe each name and alias, with the tag that Ollama adds to a name without one."""
    return [
        {
            "name": name,
            "model": name,
            "modified_at": _get_start_time(call),
            "size": 0,
            "digest": engine.info.revision or "",
            "details": _describe_details(engine),
        }
        for engine in call.models.array
        if not only_loaded or engine.status().is_loaded
        for name in map(_add_tag, engine.engine_args.list_names())
    ]


def _add_tag(name: str) -> str:
    return name if ":" in name.rpartition("/")[2] else name + DEFAULT_TAG


def _get_start_time(call: Call) -> str:
    return datetime.fromtimestamp(call.models.started_at, timezone.utc).isoformat()


def _describe_details(engine: AsyncEmbeddingEngine) -> dict[str, object]:
    info = engine.info
    return {
        "format": info.engine,
        "family": str(info.kind),
        "families": [str(info.kind)],
        "parameter_size": "",
        "quantization_level": info.dtype,
    }


ENDPOINTS = [
    *(
        Endpoint(path, [Form(handler, None, response, errors=READING_ERRORS)], method="GET", is_at_v1=False)
        for path, handler, response in (
            ("/api/tags", ollama_tags, OllamaTags),
            ("/api/ps", ollama_ps, OllamaRunning),
            ("/api/version", ollama_version, OllamaVersion),
        )
    ),
    *(
        Endpoint(
            path,
            [
                Form(
                    handler,
                    OllamaShowRequest,
                    response,
                    OLLAMA_SHOW_EXAMPLES,
                    errors=ERRORS,
                    needs_content_type=False,
                )
            ],
            is_at_v1=False,
        )
        for path, handler, response in (
            ("/api/show", ollama_show, OllamaShow),
            ("/api/pull", ollama_pull, OllamaStatus),
        )
    ),
    *(
        Endpoint(
            path,
            [Form(ollama_generate, OllamaGenerateRequest, None, errors=ERRORS, needs_content_type=False)],
            is_at_v1=False,
            is_documented=False,
        )
        for path in ("/api/generate", "/api/chat")
    ),
]
