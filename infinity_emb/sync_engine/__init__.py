"""Use models from synchronous code: one at a time (`Embedder`), or several by name (`SyncEngineArray`)."""

from infinity_emb.sync_engine.array import SyncEngineArray
from infinity_emb.sync_engine.models import Classifier, Embedder, Reranker

__all__ = ["Classifier", "Embedder", "Reranker", "SyncEngineArray"]
