"""The tasks of a `SyncEngineArray`: those of its engines, with the name of a model, as futures."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy.typing as npt

from infinity_emb.engine.embedding import DEFAULT_OPTIONS
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.results import Embeddings, EmbedOptions
from infinity_emb.items import TokenIdsInput
from infinity_emb.types import ClassifyReturnType, RerankReturnType, Truncation

T = TypeVar("T")


class SyncModelTasks:
    """Run a task with the engine of a name, alias or position; each raises UnknownModel."""

    def __getitem__(self, index_or_name: str | int) -> AsyncEmbeddingEngine:
        raise NotImplementedError

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        raise NotImplementedError

    def embed(
        self,
        *,
        model: str | int,
        sentences: Iterable[str],
        matryoshka_dim: int | None = None,
        truncate: bool = True,
        prompt: str | None = None,
        prompt_name: str | None = None,
        input_type: str | None = None,
    ) -> Future[tuple[list[npt.NDArray[Any]], int]]:
        """Return a future of `embed` of the engine."""
        return self._submit(
            self[model].embed(
                sentences=sentences,
                matryoshka_dim=matryoshka_dim,
                truncate=truncate,
                prompt=prompt,
                prompt_name=prompt_name,
                input_type=input_type,
            )
        )

    def encode(
        self,
        *,
        model: str | int,
        sentences: Iterable[str | TokenIdsInput],
        options: EmbedOptions = DEFAULT_OPTIONS,
    ) -> Future[Embeddings]:
        """Return a future of `encode` of the engine."""
        return self._submit(self[model].encode(sentences=sentences, options=options))

    def encode_passages(
        self,
        *,
        model: str | int,
        texts: Iterable[str | TokenIdsInput],
        options: EmbedOptions = DEFAULT_OPTIONS,
        chunk_size: int | None = None,
    ) -> Future[Embeddings]:
        """Return a future of `encode_passages` of the engine."""
        return self._submit(self[model].encode_passages(texts=texts, options=options, chunk_size=chunk_size))

    def rerank(
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
    ) -> Future[tuple[list[RerankReturnType], int]]:
        """Return a future of `rerank` of the engine."""
        return self._submit(
            self[model].rerank(
                query=query,
                docs=docs,
                raw_scores=raw_scores,
                top_n=top_n,
                prompt=prompt,
                prompt_name=prompt_name,
                truncation=truncation,
                max_tokens=max_tokens,
            )
        )

    def classify(
        self,
        *,
        model: str | int,
        sentences: Iterable[str | tuple[str, str] | TokenIdsInput],
        raw_scores: bool = False,
        truncation: Truncation = "model",
        max_tokens: int | None = None,
    ) -> Future[tuple[list[list[ClassifyReturnType]], int]]:
        """Return a future of `classify` of the engine."""
        return self._submit(
            self[model].classify(
                sentences=sentences, raw_scores=raw_scores, truncation=truncation, max_tokens=max_tokens
            )
        )

    def image_embed(
        self,
        *,
        model: str | int,
        images: Iterable[Any],
        matryoshka_dim: int | None = None,
    ) -> Future[tuple[list[npt.NDArray[Any]], int]]:
        """Return a future of `image_embed` of the engine."""
        return self._submit(self[model].image_embed(images=images, matryoshka_dim=matryoshka_dim))

    def audio_embed(
        self,
        *,
        model: str | int,
        audios: Iterable[Any],
        matryoshka_dim: int | None = None,
    ) -> Future[tuple[list[npt.NDArray[Any]], int]]:
        """Return a future of `audio_embed` of the engine."""
        return self._submit(self[model].audio_embed(audios=audios, matryoshka_dim=matryoshka_dim))
