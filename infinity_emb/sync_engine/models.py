"""Load one model and compute with it, in a script or a notebook: no event loop, no server, no futures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.config.model_options import DEFAULT_MODEL
from infinity_emb.engine.checks import check_texts, list_values
from infinity_emb.engine.results import EmbedOptions
from infinity_emb.engine.scoring import parse_inputs
from infinity_emb.errors import ModelNotDeployedError
from infinity_emb.sync_engine.array import SyncEngineArray
from infinity_emb.sync_engine.parts import compute_parts
from infinity_emb.types import Capability, ClassifyReturnType, ModelInfo, RerankReturnType

ModelT = TypeVar("ModelT", bound="LocalModel")


class LocalModel:
    """Hold one loaded model until `close()`, the end of a `with` block, or the end of the process.

    model: hub id or directory, or `EngineArgs` for a device, a dtype and all other options. Loading blocks,
        and downloads the model if need be.
    info: what was detected about the model, with the reasons.

    May be used by several threads at once, also where an event loop runs, as in a notebook.
    Raises StartupError if the model cannot be loaded, and ModelNotDeployedError if it is of another kind.
    """

    _capability: ClassVar[Capability]

    def __init__(self, model: str | EngineArgs = DEFAULT_MODEL) -> None:
        args = EngineArgs(model_name_or_path=model) if isinstance(model, str) else model
        # A blocking caller waits as long as necessary.
        self._array = SyncEngineArray([replace(args, max_queue_wait_s=0)])
        self._name = args.model_name_or_path
        self.info: ModelInfo = self._array[0].info
        if self._capability not in self.info.capabilities:
            self.close()
            raise ModelNotDeployedError(
                f"{type(self).__name__} cannot use {self._name!r}, a model of kind {self.info.kind}, which"
                f" supports {', '.join(self.info.capabilities)}"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"

    def __enter__(self: ModelT) -> ModelT:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the worker threads and free the model; may be called again."""
        self._array.stop()


class Embedder(LocalModel):
    """Turn texts into vectors, the same that sentence-transformers computes.

        from infinity_emb import Embedder

        embedder = Embedder("BAAI/bge-small-en-v1.5")
        vectors = embedder.embed(["Paris is a city.", "A cat sleeps."])  # (2, 384) float32

    model: hub id or directory, or `EngineArgs` for a device, a dtype and all other options. Loading blocks,
        and downloads the model if need be.
    """

    _capability = "embed"

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        input_type: str | None = None,
        prompt: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        show_progress: bool | None = None,
    ) -> npt.NDArray[Any]:
        """Embed one text, or any number of them.

        texts: a text, or N texts in a list, an array, a Series or an iterator. A text beyond the model's
            limit is truncated.
        input_type: "query" or "document", or a task or prompt of the model; None means its default.
        prompt: text to prepend to each text, in place of the model's own.
        dimensions: keep this many values of each vector, rescaled to length 1; None keeps all.
        normalize: scale vectors to length 1; None does what the model's files say.
        show_progress: None shows a bar for 512 texts or more, in a terminal or a notebook.
        Returns (N, D) float32, or (D,) float32 for one text; another dtype where `EngineArgs` says so.
        Raises BadInput, and BackendFailed for a text that cannot be computed.
        """
        listed = [texts] if isinstance(texts, str) else list_values(texts, name="texts")
        options = EmbedOptions(
            input_type=input_type,
            prompt=prompt,
            dimensions=dimensions,
            normalize=normalize,
            outputs=("dense",),
        )
        vectors = self._embed_all(listed, options, show_progress)
        return vectors[0] if isinstance(texts, str) else vectors

    def _embed_all(
        self, texts: Sequence[str], options: EmbedOptions, show_progress: bool | None
    ) -> npt.NDArray[Any]:
        if not texts:
            return np.empty((0, options.dimensions or self.info.embedding_dimension), dtype=np.float32)
        check_texts(texts, name="texts")
        vectors: npt.NDArray[Any] | None = None
        for part, embeddings in compute_parts(
            texts,
            lambda some: self._array.encode(model=0, sentences=some, options=options),
            description="Embedding",
            show_progress=show_progress,
        ):
            rows = embeddings.get("dense")
            if vectors is None:
                vectors = np.empty((len(texts), len(rows[0])), dtype=rows[0].dtype)
            vectors[part] = rows
        assert vectors is not None
        return vectors


class Reranker(LocalModel):
    """Rank documents by their relevance to a query, with a reranker or an embedding model.

        from infinity_emb import Reranker

        reranker = Reranker("mixedbread-ai/mxbai-rerank-xsmall-v1")
        best = reranker.rank("Where is Munich?", ["Munich is in Bavaria.", "A cat sleeps."])[0]
        print(best.relevance_score, best.document, best.index)

    model: hub id or directory, or `EngineArgs` for a device, a dtype and all other options. Loading blocks,
        and downloads the model if need be.
    """

    _capability = "rerank"

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        prompt: str | None = None,
        raw_scores: bool = False,
        show_progress: bool | None = None,
    ) -> list[RerankReturnType]:
        """Rank any number of documents.

        documents: N texts in a list, an array, a Series or an iterator.
        top_n: return only the best ones; None returns all.
        prompt: instruction of a reranker that takes one, or what an embedding model prepends to the query.
        raw_scores: skip the model's activation function.
        show_progress: None shows a bar for 512 documents or more, in a terminal or a notebook.
        Returns `relevance_score`, `document` and `index` in `documents`, best first.
        Raises BadInput, and BackendFailed for a document that cannot be computed.
        """
        listed = list_values(documents, name="documents")
        if not listed:
            return []
        check_texts(listed, name="documents")
        ranked = [
            replace(each, index=part.start + each.index)
            for part, (results, _) in compute_parts(
                listed,
                lambda some: self._array.rerank(
                    model=0, query=query, docs=some, raw_scores=raw_scores, prompt=prompt
                ),
                description="Ranking",
                show_progress=show_progress,
            )
            for each in results
        ]
        return sorted(ranked, key=lambda each: (-each.relevance_score, each.index))[:top_n]


class Classifier(LocalModel):
    """Score the labels of texts or pairs of texts.

        from infinity_emb import Classifier

        classifier = Classifier("SamLowe/roberta-base-go_emotions")
        best = classifier.classify(["I like it."])[0][0]
        print(best["label"], best["score"])

    model: hub id or directory, or `EngineArgs` for a device, a dtype and all other options. Loading blocks,
        and downloads the model if need be.
    """

    _capability = "classify"

    def classify(
        self,
        texts: Iterable[str | tuple[str, str]],
        *,
        raw_scores: bool = False,
        show_progress: bool | None = None,
    ) -> list[list[ClassifyReturnType]]:
        """Classify any number of texts and pairs of texts.

        texts: N texts or pairs in a list, an array, a Series or an iterator.
        raw_scores: return logits, without the model's activation function.
        show_progress: None shows a bar for 512 texts or more, in a terminal or a notebook.
        Returns for each text a list of {"label", "score"}, most likely first.
        Raises BadInput, and BackendFailed for a text that cannot be computed.
        """
        listed = list_values(texts, name="texts", what="texts and pairs of texts")
        if not listed:
            return []
        return [
            labels
            for _, (results, _) in compute_parts(
                parse_inputs(listed, name="texts"),
                lambda some: self._array.classify(model=0, sentences=some, raw_scores=raw_scores),
                description="Classifying",
                show_progress=show_progress,
            )
            for labels in results
        ]
