"""One served model: its tasks, its limits and its life cycle."""

from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine.array import AsyncEngineArray
from infinity_emb.engine.engine import AsyncEmbeddingEngine

__all__ = ["AsyncEmbeddingEngine", "AsyncEngineArray", "EngineArgs"]
