"""Run a loaded model: its worker pool, its encoding threads and its cache."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from infinity_emb.backends.base import LoadedModel
from infinity_emb.cache.cached_runner import CachedRunner, Runner
from infinity_emb.cache.stats import CacheStats
from infinity_emb.concurrency import create_shared_future
from infinity_emb.config.limits import CacheOptions
from infinity_emb.config.model_options import LoadOptions
from infinity_emb.engine.runner import ModelRunner
from infinity_emb.hub.version import model_version
from infinity_emb.scheduling.fair_threads import FairThreads
from infinity_emb.scheduling.media_workers import MediaWorkers
from infinity_emb.scheduling.worker_pool import WorkerPool

logger = logging.getLogger("infinity_emb")

# Extra time for batches that a device is computing when the drain timeout ends.
BATCH_GRACE_S = 1.5


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model that can compute, with the threads and processes that prepare its inputs."""

    model: LoadedModel
    runner: Runner
    threads: FairThreads
    media: MediaWorkers


class ModelHost:
    """Start and stop the threads and processes of a model, for one event loop at a time.

    max_batch_tokens: as given in the options, or as measured.
    batch_grace_s: extra time for running batches when the drain timeout of `close` ends.
    """

    def __init__(
        self,
        options: LoadOptions,
        cache: CacheOptions,
        *,
        max_batch_tokens: int,
        batch_grace_s: float = BATCH_GRACE_S,
    ) -> None:
        self.pool = WorkerPool(
            [],
            max_batch_tokens=max_batch_tokens,
            max_batch_items=options.batch_size,
            batch_timeout_s=options.batch_timeout_s or math.inf,
            on_give_up=self._report_death,
        )
        self.num_tokenizer_threads = 0  # until the model is opened
        self.cache_stats = CacheStats()  # since the model was opened last
        self.on_death: Callable[[], None] = lambda: None  # called once, on any thread
        self._options = options
        self._cache_options = cache
        self._batch_grace_s = batch_grace_s
        self._threads: FairThreads | None = None
        self._media: MediaWorkers | None = None
        self._runner: ModelRunner | None = None
        self._cache: CachedRunner | None = None

    def open(self, model: LoadedModel) -> OpenModel:
        """Start the threads. Raises EngineNotReady while a worker thread is still running."""
        self.pool.start(model.replicas)
        self.num_tokenizer_threads = model.num_tokenizer_threads
        threads = self._threads = FairThreads(model.num_tokenizer_threads, "infinity-tokenizer")
        self._runner = ModelRunner(model, self.pool, threads)
        runner: Runner = self._runner
        if self._cache_options.vector_disk_cache or self._cache_options.vector_memory_cache_mb:
            version = model_version(self._options, model.info)
            runner = self._cache = CachedRunner(runner, self._cache_options, version, threads)
            self.cache_stats = self._cache.stats
        media = self._media = MediaWorkers()
        return OpenModel(model, runner, threads, media)

    async def close(self, idle: asyncio.Future[None], drain_timeout_s: float) -> None:
        """Finish what is in flight within the timeout, fail the rest and stop the threads.

        idle: done when no request uses the model any more. The queue stays open until then, as inputs may
        still be on their way through the tokenizer.
        """
        loop = asyncio.get_running_loop()
        # After a crash everything accepted has failed, and a hung thread does not end.
        deadline_s = loop.time() + (drain_timeout_s if self.pool.is_alive else 0.0)
        ended, set_ended = create_shared_future()
        num_failed = 0
        try:
            await asyncio.wait([idle], timeout=max(0.0, deadline_s - loop.time()))
            if not idle.done():
                num_failed += self.pool.fail_queued()
            self.pool.close(set_ended)
            await asyncio.wait([ended], timeout=max(0.0, deadline_s - loop.time()) + self._batch_grace_s)
        finally:
            num_failed += self.pool.fail_all()
            if self._threads is not None:
                self._threads.close()
                self._threads = None
            if self._media is not None:
                self._media.close()
                self._media = None
            if self._runner is not None:
                self._runner.is_closed = True
                self._runner = None
            cache, self._cache = self._cache, None  # it refers to the model
            if cache is not None:
                await cache.close()
        if num_failed:
            logger.warning("%d inputs failed: not finished within %g s", num_failed, drain_timeout_s)

    def release_model(self) -> bool:
        """Drop all references to the model; return False while a worker thread still needs it."""
        return self.pool.release_backends()

    def _report_death(self) -> None:
        self.on_death()
