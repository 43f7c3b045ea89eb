"""TEI's `/info`: describe the served model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import Response

from infinity_emb._version import __version__
from infinity_emb.config.parsing import to_unicode
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.server.dialects.tei.errors import ERRORS, format_error
from infinity_emb.server.dialects.tei.routes import find_named_or_only
from infinity_emb.server.requests.call import Call
from infinity_emb.server.responses.error_docs import Errors
from infinity_emb.server.responses.json_vectors import json_response
from infinity_emb.server.routing import Endpoint, Form, query_parameter
from infinity_emb.types import ModelInfo, ModelKind


class TeiInfo(BaseModel):
    """One served model."""

    model_id: str = Field(description="Repository or path.")
    model_sha: str | None = Field(description="Revision.")
    model_dtype: str = Field(description="Data type of the weights.")
    served_model_name: str = Field(description="Name of the model in requests.")
    model_type: dict[str, dict[str, Any]] = Field(description="`embedding`, `classifier` or `reranker`.")
    max_concurrent_requests: int = Field(description="Maximum number of inputs in the queue.")
    max_input_length: int | None = Field(description="Maximum number of tokens per text.")
    max_batch_tokens: int = Field(description="Maximum number of tokens per batch.")
    max_batch_requests: int = Field(description="Maximum number of inputs per batch.")
    max_client_batch_size: int = Field(description="Maximum number of inputs per request.")
    auto_truncate: bool = Field(description="Whether a text that is too long is truncated by default.")
    tokenization_workers: int = Field(description="Number of threads that tokenize.")
    version: str = Field(description="Version of this server.")
    sha: None = Field(description="Always null.")
    docker_label: None = Field(description="Always null.")


async def tei_info(call: Call) -> Response:
    """Describe a served model.

    If there are several models, `?model=` selects one.
    """
    name = call.request.query_params.get("model")
    engine = find_named_or_only(call.models, name, list(call.models.array))
    return json_response(_describe(engine, max_client_batch_size=call.max_client_batch_size))


def _describe(engine: AsyncEmbeddingEngine, *, max_client_batch_size: int) -> dict[str, object]:
    """Describe a model in the order of Text Embeddings Inference."""
    args, info = engine.engine_args, engine.info
    return {
        "model_id": to_unicode(args.model_name_or_path),
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
        "tokenization_workers": engine.host.num_tokenizer_threads,
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


ENDPOINTS = [
    Endpoint(
        "/info",
        [
            Form(
                tei_info,
                None,
                TeiInfo,
                errors=Errors({status: ERRORS.docs[status] for status in (422, 503)}, format_error),
            )
        ],
        method="GET",
        is_at_v1=False,
        parameters=[query_parameter("model", "Served name or alias; optional if there is one model.")],
    )
]
