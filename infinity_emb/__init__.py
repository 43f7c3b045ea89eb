"""Serve embedding models: high throughput, low latency, sentence-transformers' own numbers.

Importing this package imports nothing else: names are looked up when they are first used, so that it
needs no more than numpy, starts nothing and reads no environment.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from infinity_emb.config import EngineArgs
    from infinity_emb.embedding import EmbedOptions
    from infinity_emb.engine import AsyncEmbeddingEngine
    from infinity_emb.engine_array import AsyncEngineArray
    from infinity_emb.env import MANAGER
    from infinity_emb.server.app import create_server
    from infinity_emb.sync_engine import SyncEngineArray

__all__ = [
    "MANAGER",
    "AsyncEmbeddingEngine",
    "AsyncEngineArray",
    "EmbedOptions",
    "EngineArgs",
    "SyncEngineArray",
    "__version__",
    "create_server",
    "logger",
]

logger = logging.getLogger("infinity_emb")

_HOMES = {
    "AsyncEmbeddingEngine": "infinity_emb.engine",
    "AsyncEngineArray": "infinity_emb.engine_array",
    "EmbedOptions": "infinity_emb.embedding",
    "EngineArgs": "infinity_emb.config",
    "MANAGER": "infinity_emb.env",
    "SyncEngineArray": "infinity_emb.sync_engine",
    "create_server": "infinity_emb.server.app",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
