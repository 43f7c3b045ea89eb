"""Schemas of requests and responses, which now live in `server/`."""

from infinity_emb.server.legacy import (
    AudioEmbeddingInput,
    ClassifyInput,
    ClassifyResult,
    DataURIorURL,
    ImageEmbeddingInput,
    ModelInfo,
    MultiModalOpenAIEmbedding,
    OpenAIEmbeddingInput,
    OpenAIEmbeddingResult,
    OpenAIModelInfo,
    RerankInput,
    ReRankResult,
)

__all__ = [
    "AudioEmbeddingInput",
    "ClassifyInput",
    "ClassifyResult",
    "DataURIorURL",
    "ImageEmbeddingInput",
    "ModelInfo",
    "MultiModalOpenAIEmbedding",
    "OpenAIEmbeddingInput",
    "OpenAIEmbeddingResult",
    "OpenAIModelInfo",
    "ReRankResult",
    "RerankInput",
]
