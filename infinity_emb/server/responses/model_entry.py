"""Describe one model in `/models`."""

from __future__ import annotations

from dataclasses import fields

from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.types import Normalization


def describe_model(engine: AsyncEmbeddingEngine, created: int) -> dict[str, object]:
    """Return the entry: first the fields that clients of infinity read, then what was detected.

    created: Unix time in seconds at which the server started.
    """
    args, info, status = engine.engine_args, engine.info, engine.status()
    is_scaled = info.is_normalized is not None and args.normalize is Normalization.always
    return {
        "id": args.served_model_name,
        "stats": {
            "queue_fraction": status.queue_fraction,
            "queue_absolute": status.num_waiting_items,
            "results_pending": status.num_requests,
            "batch_size": args.batch_size,
        },
        "object": "model",
        "owned_by": "infinity",
        "created": created,
        "backend": info.engine,
        "capabilities": info.capabilities,
        "aliases": args.served_model_aliases,
        **{field.name: getattr(info, field.name) for field in fields(info)},
        "is_normalized": is_scaled or info.is_normalized,
        "embedding_dtype": args.embedding_dtype,
        "max_batch_tokens": status.max_batch_tokens,
        "is_loaded": status.is_loaded,
        # vLLM's name of `max_tokens`, and the new names of four fields with deprecated names.
        "max_model_len": info.max_tokens,
        "origin": info.source,
        "weights_fingerprint": info.files_version,
        "graph_file": info.graph,
        "loaded": status.is_loaded,
    }
