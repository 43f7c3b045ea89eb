"""The tasks of an engine array: those of its engines, with the name of a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy.typing as npt

from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.results import DEFAULT_OPTIONS, Embeddings, EmbedOptions
from infinity_emb.items import TokenIdsInput
from infinity_emb.types import ClassifyReturnType, RerankReturnType, Truncation


class ModelTasks:
    """Run a task with the engine of a name, alias or position; each raises UnknownModel."""

    def __getitem__(self, index_or_name: str | int) -> AsyncEmbeddingEngine:
        raise NotImplementedError

    async def embed(
        self,
        *,
        model: str | int,
        sentences: Iterable[str],
        matryoshka_dim: int | None = None,
        truncate: bool = True,
        prompt: str | None = None,
        prompt_name: str | None = None,
        input_type: str | None = None,
    ) -> tuple[list[npt.NDArray[Any]], int]:
        """Call `embed` of the engine."""
        return await self[model].embed(
            sentences=sentences,
            matryoshka_dim=matryoshka_dim,
            truncate=truncate,
            prompt=prompt,
            prompt_name=prompt_name,
            input_type=input_type,
        )

    async def encode(
        self,
        *,
        model: str | int,
        sentences: Iterable[str | TokenIdsInput],
        options: EmbedOptions = DEFAULT_OPTIONS,
    ) -> Embeddings:
        """Call `encode` of the engine."""
        return await self[model].encode(sentences=sentences, options=options)

    async def encode_passages(
        self,
        *,
        model: str | int,
        texts: Iterable[str | TokenIdsInput],
        options: EmbedOptions = DEFAULT_OPTIONS,
        chunk_size: int | None = None,
    ) -> Embeddings:
        """Call `encode_passages` of the engine."""
        return await self[model].encode_passages(texts=texts, options=options, chunk_size=chunk_size)

    async def rerank(
        self,
        *,
        model: str | int,
        query: str,
        docs: Iterable[str],
        raw_scores: bool = False,
        top_n: int | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncation: Truncation = "model",
        max_tokens: int | None = None,
    ) -> tuple[list[RerankReturnType], int]:
        """Call `rerank` of the engine."""
        return await self[model].rerank(
            query=query,
            docs=docs,
            raw_scores=raw_scores,
            top_n=top_n,
            prompt=prompt,
            prompt_name=prompt_name,
            truncation=truncation,
            max_tokens=max_tokens,
        )

    async def classify(
        self,
        *,
        model: str | int,
        sentences: Iterable[str | tuple[str, str] | TokenIdsInput],
        raw_scores: bool = False,
        truncation: Truncation = "model",
        max_tokens: int | None = None,
    ) -> tuple[list[list[ClassifyReturnType]], int]:
        """Call `classify` of the engine."""
        return await self[model].classify(
            sentences=sentences, raw_scores=raw_scores, truncation=truncation, max_tokens=max_tokens
        )

    async def image_embed(
        self, *, model: str | int, images: Iterable[Any], matryoshka_dim: int | None = None
    ) -> tuple[list[npt.NDArray[Any]], int]:
        """Call `image_embed` of the engine."""
        return await self[model].image_embed(images=images, matryoshka_dim=matryoshka_dim)

    async def audio_embed(
        self, *, model: str | int, audios: Iterable[Any], matryoshka_dim: int | None = None
    ) -> tuple[list[npt.NDArray[Any]], int]:
        """Call `audio_embed` of the engine."""
        return await self[model].audio_embed(audios=audios, matryoshka_dim=matryoshka_dim)
