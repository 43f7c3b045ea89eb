"""Serve one model: `AsyncEmbeddingEngine` puts its parts together and offers their tasks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy.typing as npt

from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine.checks import check_capability
from infinity_emb.engine.embedding_options import dense_or_multivector
from infinity_emb.engine.lifecycle import Lifecycle
from infinity_emb.engine.parts import EngineParts, load_parts
from infinity_emb.engine.results import (
    DEFAULT_OPTIONS,
    ClassifyOptions,
    Embeddings,
    EmbedOptions,
    RerankOptions,
)
from infinity_emb.engine.slot import DRAIN_TIMEOUT_S
from infinity_emb.engine.status import EngineStatus
from infinity_emb.items import TokenIdsInput
from infinity_emb.types import (
    Capability,
    ClassifyReturnType,
    Modality,
    ModelInfo,
    OverloadStatus,
    RerankReturnType,
    Truncation,
)


class AsyncEmbeddingEngine:
    """One model, for any number of coroutines of one event loop.

        async with AsyncEmbeddingEngine.from_args(EngineArgs()) as engine:
            vectors, num_tokens = await engine.embed(["Hello"])

    The constructor loads and warms up the model, which blocks. Raises StartupError if it cannot be served.
    Its parts are public: `slot` unloads and reloads the model, `gate` admits requests, `host` runs the
    worker threads, and `embedder`, `scorer` and `tokenizer` have further tasks.
    """

    _load_parts: Callable[[EngineArgs], EngineParts] = staticmethod(load_parts)

    def __init__(
        self,
        engine_args: EngineArgs | str | None = None,
        _show_deprecation_warning: bool = True,
        **options: Any,
    ) -> None:
        """Load the model that `engine_args` describes; a model's name and `options` are deprecated."""
        if not isinstance(engine_args, EngineArgs):
            if _show_deprecation_warning:
                warnings.warn(
                    "use AsyncEmbeddingEngine.from_args(EngineArgs(...))", DeprecationWarning, stacklevel=2
                )
            if engine_args is not None:
                options["model_name_or_path"] = engine_args
            engine_args = EngineArgs(**options)
        self.engine_args = engine_args
        parts = self._parts = self._load_parts(engine_args)
        self.max_batch_tokens = parts.max_batch_tokens  # in one forward pass, as given or as measured
        self.host = parts.host
        self.slot = parts.slot
        self.gate = parts.gate
        self.embedder = parts.embedder
        self.scorer = parts.scorer
        self.tokenizer = parts.tokenizer
        self._lifecycle = Lifecycle(parts.slot, parts.embedder)

    @classmethod
    def from_args(cls, engine_args: EngineArgs) -> AsyncEmbeddingEngine:
        """Load the model that `engine_args` describes; blocks until it is warm."""
        return cls(engine_args)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.engine_args.served_model_name!r}, running={self.is_running})"

    async def __aenter__(self) -> AsyncEmbeddingEngine:
        await self._lifecycle.enter_block()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._lifecycle.leave_block(DRAIN_TIMEOUT_S)

    async def astart(self) -> None:
        """Start the worker threads, unless they are running."""
        await self._lifecycle.start()

    async def astop(self, drain_timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Finish accepted requests within the timeout, fail the rest and stop the threads."""
        await self._lifecycle.stop(drain_timeout_s)

    @property
    def is_running(self) -> bool:
        """Return true when a new request would be computed, after a load if need be."""
        return self.slot.is_running

    running = is_running  # LangChain's InfinityEmbeddingsLocal reads it; 0.0.77 had both names

    @property
    def info(self) -> ModelInfo:
        """Return what was detected about the model."""
        return self.slot.info

    @property
    def capabilities(self) -> set[Capability]:
        """Return the tasks that the model supports."""
        return set(self.info.capabilities)

    def status(self) -> EngineStatus:
        """Take a snapshot of the engine's state and counters."""
        return self._parts.take_status()

    def is_overloaded(self) -> bool:
        """Return true when the next request would be refused."""
        return self.gate.admission.is_full()

    def overload_status(self) -> OverloadStatus:
        """Return how full the queue is."""
        status = self.status()
        return OverloadStatus(status.queue_fraction, status.num_waiting_items, status.num_requests)

    async def embed(
        self,
        sentences: Iterable[str],
        matryoshka_dim: int | None = None,
        *,
        truncate: bool = True,
        prompt: str | None = None,
        prompt_name: str | None = None,
        input_type: str | None = None,
    ) -> tuple[list[npt.NDArray[Any]], int]:
        """Embed texts as `SentenceTransformer.encode` does.

        matryoshka_dim: truncate vectors to this many values and rescale them to length 1.
        truncate: cut a text that is over the limit; otherwise it is refused.
        prompt, prompt_name, input_type: see `EmbedOptions`.
        Returns one (D,) array per text in the dtype that the model is served with, in order, and the number
        of tokens. Late-interaction models return (n, D) arrays.
        Raises BadInput, InputTooLong, MatryoshkaDimError, Overloaded, BackendFailed and EngineNotReady.
        """
        check_capability(self.slot, "embed")
        options = EmbedOptions(
            dimensions=matryoshka_dim,
            truncation="model" if truncate else "off",
            prompt=prompt,
            prompt_name=prompt_name,
            input_type=input_type,
            outputs=dense_or_multivector(self.info),
        )
        return (await self.embedder.encode(sentences, options)).to_tuple()

    async def encode(
        self, sentences: Iterable[str | TokenIdsInput], options: EmbedOptions = DEFAULT_OPTIONS
    ) -> Embeddings:
        """Embed texts with all options; see `EmbeddingService.encode`."""
        return await self.embedder.encode(sentences, options)

    async def encode_passages(
        self,
        texts: Iterable[str | TokenIdsInput],
        options: EmbedOptions = DEFAULT_OPTIONS,
        *,
        chunk_size: int | None = None,
    ) -> Embeddings:
        """Embed passages of one document with late chunking; see `EmbeddingService.encode_passages`."""
        return await self.embedder.encode_passages(texts, options, chunk_size=chunk_size)

    async def image_embed(
        self, *, images: Iterable[Any], matryoshka_dim: int | None = None
    ) -> tuple[list[npt.NDArray[Any]], int]:
        """Embed images: URLs, data URIs, the bytes of files, or PIL images.

        Raises as `embed` does, and ImageCorruption.
        """
        options = EmbedOptions(dimensions=matryoshka_dim)
        return (await self.embedder.encode_media(images, Modality.image, options)).to_tuple()

    async def audio_embed(
        self, *, audios: Iterable[Any], matryoshka_dim: int | None = None
    ) -> tuple[list[npt.NDArray[Any]], int]:
        """Embed audio: URLs, data URIs, or the bytes of files of any sampling rate and number of channels.

        Raises as `embed` does, and AudioCorruption.
        """
        options = EmbedOptions(dimensions=matryoshka_dim)
        return (await self.embedder.encode_media(audios, Modality.audio, options)).to_tuple()

    async def rerank(
        self,
        *,
        query: str,
        docs: Iterable[str],
        raw_scores: bool = False,
        top_n: int | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncation: Truncation = "model",
        max_tokens: int | None = None,
    ) -> tuple[list[RerankReturnType], int]:
        """Rank documents by relevance to the query, best first.

        A reranker scores pairs as `CrossEncoder.predict` does. An embedder compares vectors: by cosine, by
        dot product of sparse vectors, or by MaxSim of a late-interaction model.
        Keywords: see `RerankOptions`. Returns the documents and the number of tokens; raises as `embed` does.
        """
        options = RerankOptions(
            raw_scores=raw_scores,
            top_n=top_n,
            prompt=prompt,
            prompt_name=prompt_name,
            truncation=truncation,
            max_tokens=max_tokens,
        )
        return await self.scorer.rerank(query, docs, options)

    async def classify(
        self,
        *,
        sentences: Iterable[str | tuple[str, str] | TokenIdsInput],
        raw_scores: bool = False,
        truncation: Truncation = "model",
        max_tokens: int | None = None,
    ) -> tuple[list[list[ClassifyReturnType]], int]:
        """Score all labels of each text or pair of texts, most likely first.

        Keywords: see `ClassifyOptions`. Returns the labels and the number of tokens; raises as `embed` does.
        """
        options = ClassifyOptions(raw_scores=raw_scores, truncation=truncation, max_tokens=max_tokens)
        return await self.scorer.classify(sentences, options)
