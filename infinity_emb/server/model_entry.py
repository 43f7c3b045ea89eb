"""What `/models` says about one engine. Knows nothing of HTTP."""

from __future__ import annotations

from infinity_emb.engine import AsyncEmbeddingEngine


def describe_model(engine: AsyncEmbeddingEngine, created: int) -> dict[str, object]:
    """The entry: the names that infinity's clients parse, then what was detected.

    created: Unix seconds at which the server started.
    """
    args, info = engine.engine_args, engine.info
    return {
        "id": args.served_model_name,
        "stats": _describe_queue(engine),
        "object": "model",
        "owned_by": "infinity",
        "created": created,
        "backend": info.engine,
        "capabilities": list(info.capabilities),
        "aliases": list(args.served_model_aliases),
        "kind": str(info.kind),
        "outputs": list(info.outputs),
        "labels": list(info.labels),
        "activation": info.activation,
        "similarity": info.similarity,
        "embedding_dimension": info.embedding_dimension,
        "embedding_dtype": str(args.embedding_dtype),
        "max_tokens": info.max_tokens,
        "max_batch_tokens": engine.max_batch_tokens,
        "truncation_side": info.truncation_side,
        "tasks": list(info.tasks),
        "prompts": info.prompts,
        "default_prompt_name": info.default_prompt_name,
        "engine": info.engine,
        "engine_reason": info.engine_reason,
        "dtype": info.dtype,
        "dtype_reason": info.dtype_reason,
        "device": info.device,
        "attention": info.attention,
        "attention_reason": info.attention_reason,
        "pooling": info.pooling,
        "revision": info.revision,
        "source": info.source,
        "files_version": info.files_version,
        "graph": info.graph,
        "loaded": engine.is_loaded,
    }


def _describe_queue(engine: AsyncEmbeddingEngine) -> dict[str, float]:
    status = engine.overload_status()
    return {
        "queue_fraction": status.queue_fraction,
        "queue_absolute": status.queue_absolute,
        "results_pending": status.results_absolute,
        "batch_size": engine.engine_args.batch_size,
    }
