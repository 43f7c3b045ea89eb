"""Compute inputs with an engine in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from infinity_emb.bulk.rows import RowInput
from infinity_emb.bulk.tasks import TaskOptions, group_by_query
from infinity_emb.concurrency import gather_or_cancel
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine.embedding_options import dense_or_multivector
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.results import ClassifyOptions, EmbedOptions, RerankOptions
from infinity_emb.scheduling.request_context import request_options

CONCURRENCY = 16
INPUTS_PER_REQUEST = 256
# A job waits as long as necessary and limits its own concurrency.
_NO_LIMITS: Mapping[str, Any] = {
    "max_queue_items": 2**31,
    "max_queue_tokens": 2**62,
    "max_queue_wait_s": 0,
    "max_request_chars": 2**40,
    "max_request_tokens": 0,
    "request_timeout_s": 0,
    "idle_unload_s": 0,
}


def load_engine(args: EngineArgs) -> AsyncEmbeddingEngine:
    """Load the model of a job. Raises StartupError."""
    return AsyncEmbeddingEngine.from_args(replace(args, **_NO_LIMITS))


class EngineExecutor:
    """Compute in the bulk lane of a running engine."""

    def __init__(
        self,
        engine: AsyncEmbeddingEngine,
        options: TaskOptions,
        *,
        concurrency: int = CONCURRENCY,
        inputs_per_request: int = INPUTS_PER_REQUEST,
    ) -> None:
        self.num_tokens = 0
        self.concurrency = concurrency
        self.inputs_per_request = inputs_per_request
        self._engine = engine
        self._options = options
        self._embed_options = self._make_embed_options(options)
        self._compute = {"embed": self._embed, "rerank": self._rerank, "classify": self._classify}[
            options.task
        ]

    def describe(self) -> Mapping[str, Any]:
        """Return the model and the version of its files."""
        args, info = self._engine.engine_args, self._engine.info
        return {
            "model": args.model_name_or_path,
            "model files": [info.revision, info.files_version, info.graph],
            "engine": info.engine,
            "dtype": info.dtype,
            "pooling": info.pooling,
            "embedding dtype": str(args.embedding_dtype),
            "normalize": str(args.normalize),
        }

    async def compute(self, inputs: Sequence[RowInput]) -> Sequence[Any]:
        """Return one result per input. Raises as `AsyncEmbeddingEngine.embed` does."""
        with request_options(lane="bulk"):
            return await self._compute(inputs)

    def _make_embed_options(self, options: TaskOptions) -> EmbedOptions:
        return EmbedOptions(
            prompt=options.prompt,
            prompt_name=options.prompt_name,
            input_type=options.input_type,
            dimensions=options.dimensions,
            outputs=("sparse",) if options.is_sparse else dense_or_multivector(self._engine.info),
            truncation="model" if options.truncates else "off",
        )

    async def _embed(self, inputs: Sequence[Any]) -> Sequence[Any]:
        embeddings = await self._engine.encode(inputs, self._embed_options)
        self.num_tokens += embeddings.num_tokens
        [output] = self._embed_options.outputs or ("dense",)
        return embeddings.get(output)

    async def _rerank(self, inputs: Sequence[RowInput]) -> Sequence[Any]:
        groups = group_by_query(inputs)
        options = RerankOptions(
            raw_scores=self._options.raw_scores, truncation="model" if self._options.truncates else "off"
        )
        rankings = await gather_or_cancel(
            self._engine.scorer.rerank(query, [inputs[index][1] for index in indices], options)
            for query, indices in groups.items()
        )
        scores = [0.0] * len(inputs)
        for indices, (ranked, num_tokens) in zip(groups.values(), rankings, strict=True):
            self.num_tokens += num_tokens
            for each in ranked:
                scores[indices[each.index]] = each.relevance_score
        return scores

    async def _classify(self, inputs: Sequence[Any]) -> Sequence[Any]:
        options = ClassifyOptions(
            raw_scores=self._options.raw_scores, truncation="model" if self._options.truncates else "off"
        )
        labels, num_tokens = await self._engine.scorer.classify(inputs, options)
        self.num_tokens += num_tokens
        return labels
