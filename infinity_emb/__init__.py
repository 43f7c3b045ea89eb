"""Serve embedding models with high throughput, low latency and the outputs of sentence-transformers.

Each public name is imported when it is first used, so importing the package needs no more than numpy,
starts no thread and reads no environment variable.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from infinity_emb._version import __version__

if TYPE_CHECKING:
    from infinity_emb.config.engine_args import EngineArgs
    from infinity_emb.engine.array import AsyncEngineArray
    from infinity_emb.engine.engine import AsyncEmbeddingEngine
    from infinity_emb.engine.results import ClassifyOptions, Embeddings, EmbedOptions, RerankOptions
    from infinity_emb.env import MANAGER
    from infinity_emb.errors import (
        AudioCorruption,
        BackendFailed,
        BadInput,
        DeadlineExceeded,
        DeviceFailed,
        DeviceOutOfMemory,
        EngineNotReady,
        ImageCorruption,
        InputTooLong,
        LoadFailed,
        MatryoshkaDimError,
        ModelNotDeployedError,
        ModelNotNamed,
        ModelTooLarge,
        NameInUse,
        Overloaded,
        ServingError,
        StartupError,
        UnknownModel,
    )
    from infinity_emb.items import SparseVector, TokenIdsInput
    from infinity_emb.server.app import create_server
    from infinity_emb.sync_engine.array import SyncEngineArray
    from infinity_emb.sync_engine.models import Classifier, Embedder, Reranker
    from infinity_emb.types import (
        ClassifyReturnType,
        Device,
        Dtype,
        EmbeddingDtype,
        InferenceEngine,
        ModelKind,
        Normalization,
        PoolingMethod,
        RerankReturnType,
        TokenIdPolicy,
    )

__all__ = [
    "MANAGER",
    "AsyncEmbeddingEngine",
    "AsyncEngineArray",
    "AudioCorruption",
    "BackendFailed",
    "BadInput",
    "Classifier",
    "ClassifyOptions",
    "ClassifyReturnType",
    "DeadlineExceeded",
    "Device",
    "DeviceFailed",
    "DeviceOutOfMemory",
    "Dtype",
    "EmbedOptions",
    "Embedder",
    "EmbeddingDtype",
    "Embeddings",
    "EngineArgs",
    "EngineNotReady",
    "ImageCorruption",
    "InferenceEngine",
    "InputTooLong",
    "LoadFailed",
    "MatryoshkaDimError",
    "ModelKind",
    "ModelNotDeployedError",
    "ModelNotNamed",
    "ModelTooLarge",
    "NameInUse",
    "Normalization",
    "Overloaded",
    "PoolingMethod",
    "RerankOptions",
    "RerankReturnType",
    "Reranker",
    "ServingError",
    "SparseVector",
    "StartupError",
    "SyncEngineArray",
    "TokenIdPolicy",
    "TokenIdsInput",
    "UnknownModel",
    "__version__",
    "create_server",
    "logger",
]

logger = logging.getLogger("infinity_emb")

_MODULES = {
    "infinity_emb.config.engine_args": ("EngineArgs",),
    "infinity_emb.engine.array": ("AsyncEngineArray",),
    "infinity_emb.engine.engine": ("AsyncEmbeddingEngine",),
    "infinity_emb.engine.results": ("ClassifyOptions", "EmbedOptions", "Embeddings", "RerankOptions"),
    "infinity_emb.env": ("MANAGER",),
    "infinity_emb.errors": (
        "AudioCorruption",
        "BackendFailed",
        "BadInput",
        "DeadlineExceeded",
        "DeviceFailed",
        "DeviceOutOfMemory",
        "EngineNotReady",
        "ImageCorruption",
        "InputTooLong",
        "LoadFailed",
        "MatryoshkaDimError",
        "ModelNotDeployedError",
        "ModelNotNamed",
        "ModelTooLarge",
        "NameInUse",
        "Overloaded",
        "ServingError",
        "StartupError",
        "UnknownModel",
    ),
    "infinity_emb.items": ("SparseVector", "TokenIdsInput"),
    "infinity_emb.server.app": ("create_server",),
    "infinity_emb.sync_engine.array": ("SyncEngineArray",),
    "infinity_emb.sync_engine.models": ("Classifier", "Embedder", "Reranker"),
    "infinity_emb.types": (
        "ClassifyReturnType",
        "Device",
        "Dtype",
        "EmbeddingDtype",
        "InferenceEngine",
        "ModelKind",
        "Normalization",
        "PoolingMethod",
        "RerankReturnType",
        "TokenIdPolicy",
    ),
}
_MODULE_BY_NAME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_MODULE_BY_NAME[name]), name)
    except ModuleNotFoundError as exc:
        if name != "create_server":
            raise
        package = (exc.name or "").partition(".")[0]
        raise ImportError(
            f"create_server needs a package that is not installed ({package}); install it with:"
            " pip install 'infinity-emb[server]'"
        ) from exc
